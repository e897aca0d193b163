import Foundation

/// What a machine boots: a program that plays the guest.
enum GuestProgram: Sendable {
    /// A file with a script at its beginning, up to the first zero byte.
    case script(in: URL)
    /// A program and its arguments.
    case executable(URL, [String])

    /// What is in a machine's boot disk or kernel. Nil: no program; such a guest runs, does nothing, and has
    /// to be stopped.
    static func found(in plan: MachinePlan) -> GuestProgram? {
        switch plan.boot {
        case .disk:
            guard let disk = plan.disks.first?.url, isScript(disk) else { return nil }
            return .script(in: disk)
        case .kernel(let kernel, let arguments):
            if access(kernel.path, X_OK) == 0 { return .executable(kernel, arguments) }
            return isScript(kernel) ? .script(in: kernel) : nil
        }
    }

    /// The arguments to run it with. A script is copied into `directory` and its interpreter named: run by
    /// itself, the copy could still be open for writing in a child another thread is just making (ETXTBSY).
    func arguments(copyingTo directory: GuestDirectory) throws -> [String] {
        switch self {
        case .executable(let url, let arguments): return [url.path] + arguments
        case .script(let url):
            let text = try Self.text(of: url)
            let copy = directory.path + "/program"
            try BackingFile.create(text, at: URL(fileURLWithPath: copy), mode: 0o700)
            let line = text.dropFirst(2).prefix { $0 != UInt8(ascii: "\n") }
            // As the kernel reads it: an interpreter, and the rest of the line as one argument.
            let interpreter = String(decoding: line, as: UTF8.self).trimmingCharacters(in: .whitespaces)
                .split(maxSplits: 1) { $0 == " " || $0 == "\t" }
                .map { $0.trimmingCharacters(in: .whitespaces) }
            guard !interpreter.isEmpty else { throw NSError.posix(ENOEXEC) }
            return interpreter + [copy]
        }
    }

    private static func isScript(_ url: URL) -> Bool {
        guard let file = try? FileHandle(forReadingFrom: url) else { return false }
        defer { try? file.close() }
        return (try? file.read(upToCount: 2)) == Data("#!".utf8)
    }

    private static let largest = 16 << 20

    private static func text(of url: URL) throws -> Data {
        let file = try FileHandle(forReadingFrom: url)
        defer { try? file.close() }
        var text = Data()
        while text.count < largest, let chunk = try file.read(upToCount: 64 << 10), !chunk.isEmpty {
            if let end = chunk.firstIndex(of: 0) { return text + chunk[..<end] }
            text += chunk
        }
        guard text.count < largest else { throw NSError.posix(EFBIG) }
        return text
    }
}

/// The environment of what runs for a guest.
enum GuestEnvironment {
    static var path: [String: String] {
        ["PATH": ProcessInfo.processInfo.environment["PATH"] ?? "/usr/local/bin:/usr/bin:/bin"]
    }
}
