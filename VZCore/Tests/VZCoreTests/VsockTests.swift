import Darwin
import Foundation
import Testing
import Virtualization

@testable import VZCore

/// The guest's end of its sockets, played by the test: `Guest.talkative` writes where they are.
struct GuestSide: Sendable {
    private let fifo: String

    /// For the bundle `vm`, before its guest starts.
    init(_ place: TestDirectory) throws {
        fifo = place("vm/sockets")
        try #require(mkfifo(fifo, 0o600) == 0)
    }

    /// Listens on a port; the listener accepts nothing by itself.
    func listen(_ port: UInt32) async throws -> Socket {
        let directory = try await directory()
        let socket = try Socket()
        try socket.bind(directory + "/guest-\(port)")
        return socket
    }

    /// Where the guest's sockets are.
    func directory() async throws -> String {
        let path = fifo
        let fifo = Socket(taking: try await blocking { open(path, O_RDONLY | O_CLOEXEC) })
        defer { fifo.close() }
        return try await fifo.read().trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

/// A Unix stream socket.
struct Socket: Sendable {
    let descriptor: Int32

    init() throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        try #require(descriptor >= 0)
    }

    init(taking descriptor: Int32) { self.descriptor = descriptor }

    func bind(_ path: String) throws {
        try #require(Self.withAddress(path) { Darwin.bind(descriptor, $0, $1) } == 0)
        try #require(Darwin.listen(descriptor, 64) == 0)
    }

    /// -1 when there is no listener.
    func connect(_ path: String) -> Int32 { Self.withAddress(path) { Darwin.connect(descriptor, $0, $1) } }

    func accept() async throws -> Socket {
        let descriptor = descriptor
        return Socket(taking: try await blocking { Darwin.accept(descriptor, nil, nil) })
    }

    func write(_ text: String) throws {
        let bytes = Array(text.utf8)
        try #require(Darwin.write(descriptor, bytes, bytes.count) == bytes.count)
    }

    /// What came, at least one byte; "" at the end.
    func read() async throws -> String {
        let descriptor = descriptor
        return try await blocking {
            var bytes = [UInt8](repeating: 0, count: 256)
            let count = Darwin.read(descriptor, &bytes, bytes.count)
            return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
        }
    }

    func close() { _ = Darwin.close(descriptor) }

    private static func withAddress(
        _ path: String, _ call: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                call($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Vsock {
        let place = TestDirectory()

        @Test func a_connection_to_the_guest_is_a_descriptor_of_the_callers() async throws {
            try await withMachine(.small(place.bundle(guest: Guest.talkative))) { machine, _ in
                let guest = try GuestSide(place)
                try await machine.start()
                let listener = try await guest.listen(1024)
                let host = Socket(taking: try await machine.connect(toPort: 1024))
                let accepted = try await listener.accept()
                #expect(fcntl(host.descriptor, F_GETFD) & FD_CLOEXEC != 0)
                try host.write("ping")
                #expect(try await accepted.read() == "ping")
                try accepted.write("pong")
                #expect(try await host.read() == "pong")
                host.close()
                #expect(try await accepted.read() == "", "only the caller holds the connection")
                accepted.close()
                listener.close()
            }
        }

        @Test func a_port_without_a_listener_is_a_failed_connection() async throws {
            try await withMachine(.small(place.bundle())) { machine, _ in
                try await machine.start()
                let refused = await failure { _ = try await machine.connect(toPort: 4242) }
                #expect(refused.code == .connectFailed)
                #expect(
                    refused.reason.hasPrefix("connecting to port 4242 of the VM of \(machine.spec.bundle): ")
                )
                #expect(refused.reason.contains("(NSPOSIXErrorDomain \(ECONNRESET))"))
            }
        }

        @Test func the_guests_connections_are_the_observers() async throws {
            let spec = MachineSpec.small(try place.bundle(guest: Guest.talkative)) {
                $0.vsockListen = [7, 1024]
            }
            try await withMachine(spec) { machine, log in
                let guest = try GuestSide(place)
                try await machine.start()
                let directory = try await guest.directory()
                let inGuest = try Socket()
                #expect(inGuest.connect(directory + "/host-1024") == 0)
                let event = await log.first { if case .guestConnected = $0 { true } else { false } }
                guard case .guestConnected(let port, let descriptor) = event else { return }
                #expect(port == 1024)
                #expect(fcntl(descriptor, F_GETFD) & FD_CLOEXEC != 0)
                let host = Socket(taking: descriptor)
                try inGuest.write("hello")
                #expect(try await host.read() == "hello")
                host.close()
                #expect(try await inGuest.read() == "")
                inGuest.close()

                await machine.close()
                let late = try Socket()
                #expect(late.connect(directory + "/host-1024") != 0, "there is no listener any more")
                late.close()
            }
        }
    }
}
