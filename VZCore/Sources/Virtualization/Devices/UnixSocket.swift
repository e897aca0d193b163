import CLinux
import Foundation

/// Unix stream sockets, which stand for vsock. Every descriptor is closed on exec.
enum UnixSocket {
    /// Throws the POSIX error. Never waits: without a listener it fails.
    static func connect(to path: String) throws -> Int32 {
        let descriptor = try make(nonblocking: true)
        let failure = withAddress(path) { Foundation.connect(descriptor, $0, $1) == 0 ? 0 : errno }
        guard failure == 0 else {
            close(descriptor)
            throw NSError.posix(failure)
        }
        _ = fcntl(descriptor, F_SETFL, 0)
        return descriptor
    }

    /// Throws the POSIX error. The socket does not wait for a connection to accept.
    static func listen(at path: String) throws -> Int32 {
        let descriptor = try make(nonblocking: true)
        let failure = withAddress(path) { address, length in
            unlink(path)
            return bind(descriptor, address, length) == 0 && Foundation.listen(descriptor, 128) == 0
                ? 0 : errno
        }
        guard failure == 0 else {
            close(descriptor)
            throw NSError.posix(failure)
        }
        return descriptor
    }

    /// Nil if there is none to take.
    static func accept(on listener: Int32) -> Int32? {
        let descriptor = clinux_accept(listener)
        return descriptor < 0 ? nil : descriptor
    }

    private static func make(nonblocking: Bool) throws -> Int32 {
        let kind = SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | (nonblocking ? SOCK_NONBLOCK.rawValue : 0)
        let descriptor = socket(AF_UNIX, Int32(kind), 0)
        guard descriptor >= 0 else { throw NSError.posix(errno) }
        return descriptor
    }

    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return ENAMETOOLONG }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }
}
