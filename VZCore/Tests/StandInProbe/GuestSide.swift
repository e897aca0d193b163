import Foundation

/// The guest's side of vsock, for guests whose program this is.
enum GuestSide {
    /// Listens on a port and sends back what it gets, one connection after the other.
    static func echo(on port: String) -> Never {
        let listener = stream()
        guard withAddress("guest-\(port)", { bind(listener, $0, $1) }) == 0, listen(listener, 8) == 0 else {
            failed()
        }
        say("listening")
        while true {
            let connection = accept(listener, nil, nil)
            guard connection >= 0 else { failed() }
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = read(connection, &buffer, buffer.count)
                guard count > 0 else { break }
                guard write(connection, buffer, count) == count else { failed() }
            }
            close(connection)
        }
    }

    /// Connects to a port of the host, sends a line, and prints what comes back until the host closes.
    static func call(_ port: String, saying text: String) -> Never {
        let connection = stream()
        guard withAddress("host-\(port)", { connect(connection, $0, $1) }) == 0 else { failed() }
        let line = Array("\(text)\n".utf8)
        let sent = send(connection, line, line.count, Int32(MSG_NOSIGNAL))
        var answer: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while sent == line.count {
            let count = read(connection, &buffer, buffer.count)
            guard count > 0 else { break }
            answer += buffer[..<count]
        }
        say("answer: \(String(decoding: answer, as: UTF8.self))")
        while true { pause() }
    }

    private static func stream() -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { failed() }
        return descriptor
    }

    private static func withAddress(
        _ name: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        let directory = ProcessInfo.processInfo.environment["VZ_GUEST_VSOCK"] ?? "."
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) {
            $0.copyBytes(from: Array("\(directory)/\(name)".utf8))
        }
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    private static func failed() -> Never {
        say("failed: \(String(cString: strerror(errno)))")
        exit(1)
    }
}
