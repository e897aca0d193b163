import Foundation

/// A process, its process group and its descendants, also those that left the group.
struct ProcessTree {
    let root: pid_t

    /// Stops all of it. A process is stopped before its children are listed: it makes no more, and waits for
    /// none, so the list holds.
    @discardableResult
    func stop() -> [pid_t] {
        var found: [pid_t] = []
        var open = [root]
        while let process = open.popLast() {
            kill(process, SIGSTOP)
            found.append(process)
            open += Self.children(of: process)
        }
        kill(-root, SIGSTOP)
        return found
    }

    func resume() {
        var open = [root]
        while let process = open.popLast() {
            open += Self.children(of: process)
            kill(process, SIGCONT)
        }
        kill(-root, SIGCONT)
    }

    func end() {
        for process in stop() { kill(process, SIGKILL) }
        kill(-root, SIGKILL)
    }

    private static func children(of process: pid_t) -> [pid_t] {
        let threads = "/proc/\(process)/task"
        guard let directory = opendir(threads) else { return [] }
        defer { closedir(directory) }
        var children: [pid_t] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard name.first?.isNumber == true else { continue }
            children += numbers(in: "\(threads)/\(name)/children")
        }
        return children
    }

    private static func numbers(in path: String) -> [pid_t] {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return [] }
        defer { close(file) }
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(file, &chunk, chunk.count)
            guard count > 0 else { break }
            text += chunk[..<count]
        }
        return String(decoding: text, as: UTF8.self).split(separator: " ").compactMap { pid_t($0) }
    }
}
