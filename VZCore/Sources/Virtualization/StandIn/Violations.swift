import Foundation

/// Mistakes in the use of the framework, which end the process on macOS.
enum Violations {
    static func report(_ text: String) {
        guard let collected = Thread.current.threadDictionary[key] as? Collected else {
            fatalError("Virtualization: \(text)")
        }
        collected.texts.append(text)
    }

    static func collect(during body: () throws -> Void) rethrows -> [String] {
        let outer = Thread.current.threadDictionary[key]
        let collected = Collected()
        Thread.current.threadDictionary[key] = collected
        defer { Thread.current.threadDictionary[key] = outer }
        try body()
        return collected.texts
    }

    private static let key = "Virtualization.violations"
    private final class Collected { var texts: [String] = [] }
}
