import Foundation

/// A running machine's private directory: the sockets that stand for vsock, the copy of the program, the
/// guest's home.
struct GuestDirectory: Sendable {
    let path: String

    /// Makes it, for this user alone.
    init() throws {
        let beside = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
        // A socket's path has at most 107 bytes: with its name, "/vz-XXXXXX/guest-4294967295", at most 80 for
        // this.
        var template = Array(("\(beside.utf8.count <= 80 ? beside : "/tmp")/vz-XXXXXX").utf8CString)
        guard mkdtemp(&template) != nil else { throw NSError.posix(errno) }
        path = template.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "" }
    }

    /// Where the guest listens on a port.
    func guestSocket(_ port: UInt32) -> String { "\(path)/guest-\(port)" }
    /// Where the host listens on a port.
    func hostSocket(_ port: UInt32) -> String { "\(path)/host-\(port)" }

    func remove() { try? FileManager.default.removeItem(atPath: path) }
}
