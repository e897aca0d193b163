import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
/// What needs a separate process: see StandInProbe.
@Suite(.timeLimit(.minutes(5))) struct ProcessTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    /// The probe, running, and what it writes.
    private final class Run: Sendable {
        let process: pid_t
        let console: Console
        private let ending = Waiting<Int32>()

        init(_ arguments: [String], in workshop: TestDirectory) throws {
            console = try Console()
            let null = try Descriptor(copying: nil)
            process = try Spawn(
                arguments: [Probe.path] + arguments,
                // swift-backtrace would hold the console after a crash that is meant, for as long as it takes.
                environment: [
                    "PATH": "/usr/bin:/bin", "TMPDIR": workshop.path, "SWIFT_BACKTRACE": "enable=no",
                ],
                directory: workshop.path,
                descriptors: [null.number, console.output.fileDescriptor, console.output.fileDescriptor]
            ).run()
            // Only the probe and its guests write there now.
            try console.output.close()
            Thread { [process, ending] in
                var status: Int32 = 0
                while waitpid(process, &status, 0) < 0, errno == EINTR {}
                ending.add(status & 0x7f == 0 ? status >> 8 & 0xff : -(status & 0x7f))
            }.start()
        }

        /// How it ended: its exit status, or its signal as a negative number.
        func end() async throws -> Int32 { try await ending.next() }

        func lines() async throws -> [String] {
            var lines: [String] = []
            while let line = try await console.line() { lines.append(line) }
            return lines
        }
    }

    private static let guest = """
        #!/bin/sh
        trap '' TERM HUP INT
        setsid sleep 1000 &
        outside=$!
        sleep 1000 &
        echo "$$ $! $outside"
        echo "$VZ_GUEST_VSOCK"
        wait

        """

    @Test(arguments: [SIGKILL, SIGTERM, SIGHUP]) func a_guest_dies_with_its_host_however_that_dies(
        signal: Int32
    ) async throws {
        let run = try Run(["hold", workshop.disk("Disk.img", Self.guest).path], in: workshop)
        let guests = try #require(try await run.console.line()).split(separator: " ").compactMap { pid_t($0) }
        let directory = try #require(try await run.console.line())
        #expect(guests.count == 3)
        #expect(guests.allSatisfy { !Processes.isGone($0) })
        kill(run.process, signal)
        #expect(try await run.end() == -signal)
        try await until { guests.allSatisfy(Processes.isGone) }
        try await until { access(directory, F_OK) != 0 }
        // No process has the console open any more.
        _ = try await run.lines()
    }

    @Test func a_paused_guest_dies_with_its_host_too() async throws {
        let run = try Run(["hold", workshop.disk("Disk.img", Self.guest).path], in: workshop)
        let guests = try #require(try await run.console.line()).split(separator: " ").compactMap { pid_t($0) }
        for guest in guests { kill(guest, SIGSTOP) }
        kill(run.process, SIGKILL)
        #expect(try await run.end() == -SIGKILL)
        try await until { guests.allSatisfy(Processes.isGone) }
    }

    @Test func many_machines_leave_nothing_behind() async throws {
        let disk = try workshop.disk("Disk.img", "#!/bin/sh\nexec sleep 1000\n").path
        let run = try Run(["cycles", "40", disk], in: workshop)
        let lines = try await run.lines()
        #expect(try await run.end() == 0)
        let before = try #require(lines.first { $0.hasPrefix("before ") }).dropFirst("before ".count)
        let after = try #require(lines.first { $0.hasPrefix("after ") }).dropFirst("after ".count)
        #expect(before == after)
        #expect(after.hasPrefix("machines 0 guests 0 ") && after.hasSuffix("children 0"))
        // A program built for coverage leaves its counts where it works.
        let left = try FileManager.default.contentsOfDirectory(atPath: workshop.path).sorted()
            .filter { !$0.hasSuffix(".profraw") }
        #expect(left == ["Disk.img", "Disk.img.efi"])
    }

    @Test func the_wrong_queue_ends_the_process_with_the_reason() async throws {
        let run = try Run(["wrong-queue", workshop.disk().path], in: workshop)
        let lines = try await run.lines()
        #expect(try await run.end() < 0)
        let reason =
            "Virtualization: VZVirtualMachine.state was used outside the virtual machine's queue \"probe\""
        #expect(lines.contains { $0.contains(reason) })
        #expect(!lines.contains { $0.hasPrefix("the state is") })
    }

    @Test func an_invalid_configuration_ends_the_process_with_the_reason() async throws {
        let run = try Run(["invalid"], in: workshop)
        let lines = try await run.lines()
        #expect(try await run.end() < 0)
        #expect(lines.contains { $0.contains("invalid configuration: The boot loader is not set.") })
        #expect(!lines.contains("it was made"))
    }

    @Test func an_application_serves_the_main_queue_until_it_is_stopped_and_an_event_comes() async throws {
        let run = try Run(["application"], in: workshop)
        let lines = try await run.lines()
        #expect(try await run.end() == 0)
        #expect(
            lines == [
                "launched", "the main queue is served: true", "no event came yet: true", "stopped: true",
            ])
    }
}
