import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

/// The executable that is built beside the tests.
enum Probe {
    static var path: String {
        URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
            .appendingPathComponent("StandInProbe").path
    }
}

/// A listener's delegate that reports every connection, and keeps or refuses it.
private final class Door: NSObject, VZVirtioSocketListenerDelegate, Sendable {
    struct Visit: Sendable {
        let descriptor: Int32
        let ports: [UInt32]
    }

    let visits = Waiting<Visit>()
    private let isOpen: Bool

    init(isOpen: Bool) { self.isOpen = isOpen }

    func listener(
        _ listener: VZVirtioSocketListener, shouldAcceptNewConnection connection: VZVirtioSocketConnection,
        from socketDevice: VZVirtioSocketDevice
    ) -> Bool {
        let descriptor = isOpen ? dup(connection.fileDescriptor) : -1
        visits.add(Visit(descriptor: descriptor, ports: [connection.sourcePort, connection.destinationPort]))
        return isOpen
    }
}

private final class Unconcerned: NSObject, VZVirtioSocketListenerDelegate {}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct SocketTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    /// A machine whose guest is the probe.
    private func guest(_ commandLine: String) throws -> VZVirtualMachineConfiguration {
        let configuration = try workshop.linux()
        let loader = VZLinuxBootLoader(kernelURL: URL(fileURLWithPath: Probe.path))
        loader.commandLine = commandLine
        configuration.bootLoader = loader
        return configuration
    }

    private func listen(_ rig: Rig, _ door: (any VZVirtioSocketListenerDelegate & Sendable)?, port: UInt32) {
        rig.look { vm in
            let listener = VZVirtioSocketListener()
            listener.delegate = door
            (vm.socketDevices.first as? VZVirtioSocketDevice)?.setSocketListener(listener, forPort: port)
        }
    }

    private func say(_ text: String, to descriptor: Int32) {
        let bytes = Array(text.utf8)
        #expect(write(descriptor, bytes, bytes.count) == bytes.count)
    }

    private func received(_ descriptor: Int32, _ count: Int) -> String {
        var buffer = [UInt8](repeating: 0, count: count)
        let got = recv(descriptor, &buffer, count, Int32(MSG_WAITALL))
        return String(decoding: buffer.prefix(max(0, got)), as: UTF8.self)
    }

    @Test func the_host_reaches_a_port_the_guest_listens_on() async throws {
        let rig = try Rig(guest("echo 1024"))
        try await rig.start()
        #expect(try await rig.console.line() == "listening")
        for word in ["first", "again"] {
            let descriptor = try await rig.connect(1024)
            defer { close(descriptor) }
            say(word, to: descriptor)
            #expect(received(descriptor, word.utf8.count) == word)
        }
    }

    @Test func a_port_without_a_listener_resets_the_connection() async throws {
        let rig = try Rig(guest("echo 1024"))
        try await rig.start()
        let error = await failure { try await rig.connect(1025) }
        #expect(error?.domain == NSPOSIXErrorDomain && error?.code == Int(ECONNRESET))
    }

    @Test func there_is_no_connection_to_a_guest_that_does_not_run() async throws {
        let rig = try Rig(guest("echo 1024"))
        #expect(isError(await failure { try await rig.connect(1024) }, .invalidVirtualMachineState))
        try await rig.start()
        try await rig.pause()
        #expect(isError(await failure { try await rig.connect(1024) }, .invalidVirtualMachineState))
    }

    @Test func a_connection_owns_its_descriptor_and_closes_it_once() async throws {
        let rig = try Rig(guest("echo 1024"))
        try await rig.start()
        #expect(try await rig.console.line() == "listening")
        let seen: [Int32] = try await rig.ask { vm, done in
            guard let device = vm.socketDevices.first as? VZVirtioSocketDevice else { return }
            device.connect(toPort: 1024) { result in
                done(
                    result.map { connection in
                        let open = connection.fileDescriptor
                        let flags = fcntl(open, F_GETFD)
                        connection.close()
                        connection.close()
                        return [open, flags, connection.fileDescriptor, Int32(connection.destinationPort)]
                    })
            }
        }
        #expect(seen[0] >= 0)
        #expect(seen[1] == FD_CLOEXEC)
        #expect(Array(seen.dropFirst(2)) == [-1, 1024])
    }

    @Test func the_guest_reaches_a_port_the_host_listens_on() async throws {
        let rig = try Rig(guest("call 7 hello"))
        let door = Door(isOpen: true)
        listen(rig, door, port: 7)
        try await rig.start()
        let visit = try await door.visits.next()
        #expect(visit.ports[1] == 7 && visit.ports[0] != 7)
        #expect(received(visit.descriptor, 6) == "hello\n")
        say("welcome", to: visit.descriptor)
        close(visit.descriptor)
        #expect(try await rig.console.line() == "answer: welcome")
    }

    @Test func a_connection_the_delegate_refuses_is_closed() async throws {
        let rig = try Rig(guest("call 7 hello"))
        let door = Door(isOpen: false)
        listen(rig, door, port: 7)
        try await rig.start()
        #expect(try await door.visits.next().ports[1] == 7)
        #expect(try await rig.console.line() == "answer: ")
    }

    @Test func a_connection_no_delegate_wants_is_closed() async throws {
        let unconcerned = Transfer(value: Unconcerned())
        for delegate in [nil, unconcerned] {
            let rig = try Rig(guest("call 7 hello"))
            rig.look { vm in
                let listener = VZVirtioSocketListener()
                listener.delegate = delegate?.value
                (vm.socketDevices.first as? VZVirtioSocketDevice)?.setSocketListener(listener, forPort: 7)
            }
            try await rig.start()
            #expect(try await rig.console.line() == "answer: ")
            try await rig.stop()
        }
    }

    @Test func a_port_without_a_listener_refuses_the_guest() async throws {
        let rig = try Rig(guest("call 7 hello"))
        listen(rig, Door(isOpen: true), port: 8)
        try await rig.start()
        #expect(try await rig.console.line() == "failed: No such file or directory")
    }

    @Test func a_listener_may_come_and_go_while_the_guest_runs() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\necho $VZ_GUEST_VSOCK\nexec sleep 1000\n"))
        try await rig.start()
        let directory = try #require(try await rig.console.line())
        let (first, second) = (Door(isOpen: true), Door(isOpen: true))
        func connect() throws -> Int32 { try UnixSocket.connect(to: "\(directory)/host-9") }

        #expect(throws: NSError.self) { _ = try connect() }
        listen(rig, first, port: 9)
        close(try connect())
        close(try await first.visits.next().descriptor)
        listen(rig, second, port: 9)
        close(try connect())
        close(try await second.visits.next().descriptor)
        #expect(first.visits.isEmpty)
        rig.look { ($0.socketDevices.first as? VZVirtioSocketDevice)?.removeSocketListener(forPort: 9) }
        #expect(throws: NSError.self) { _ = try connect() }
    }

    @Test func listeners_are_there_again_when_the_machine_is_started_again() async throws {
        let rig = try Rig(guest("call 7 hello"))
        let door = Door(isOpen: true)
        listen(rig, door, port: 7)
        for _ in 0..<2 {
            try await rig.start()
            let visit = try await door.visits.next()
            #expect(received(visit.descriptor, 6) == "hello\n")
            close(visit.descriptor)
            try await rig.stop()
        }
    }

    @Test func connections_end_with_the_guest() async throws {
        let rig = try Rig(guest("echo 1024"))
        try await rig.start()
        #expect(try await rig.console.line() == "listening")
        let descriptor = try await rig.connect(1024)
        defer { close(descriptor) }
        say("x", to: descriptor)
        #expect(received(descriptor, 1) == "x")
        try await rig.stop()
        #expect(received(descriptor, 1) == "")
    }
}
