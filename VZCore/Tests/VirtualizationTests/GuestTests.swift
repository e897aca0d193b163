import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

/// Looks at processes.
enum Processes {
    /// Its state as /proc says it ("S", "R", "T", "Z"), or nil if it has ended.
    static func state(_ process: pid_t) -> String? {
        let status = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
        return status?.split(separator: ")").last?.split(separator: " ").first.map(String.init)
    }

    static func isGone(_ process: pid_t) -> Bool { state(process).map { $0 == "Z" || $0 == "X" } ?? true }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct GuestTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    @Test func a_guest_that_ends_with_0_powered_off() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\nexit 0\n"))
        try await rig.start()
        #expect(try await rig.log.next() == .stopped(.stopped))
        #expect(rig.look { $0.canStart })
    }

    @Test func a_guest_that_ends_otherwise_crashed_and_can_be_started_again() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\nexit 3\n"))
        try await rig.start()
        let reason = "The guest stopped unexpectedly: it ended with exit status 3."
        #expect(try await rig.log.next() == .failed(.error, code: 1, reason: reason))
        #expect(rig.look { $0.canStart && !$0.canStop })
        try await rig.start()
        #expect(try await rig.log.next() == .failed(.error, code: 1, reason: reason))
    }

    @Test func a_guest_that_is_killed_by_another_crashed() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\nkill -SEGV $$\n"))
        try await rig.start()
        let reason = "The guest stopped unexpectedly: it ended by signal 11."
        #expect(try await rig.log.next() == .failed(.error, code: 1, reason: reason))
    }

    @Test func a_guest_whose_interpreter_is_missing_crashes_after_its_start() async throws {
        let rig = try Rig(workshop.linux("#!/nowhere/sh\n"))
        try await rig.start()
        guard case .failed(.error, code: 1, let reason) = try await rig.log.next() else {
            Issue.record("the guest did not fail")
            return
        }
        #expect(reason.contains("exit status 127"))
    }

    @Test func a_guest_without_an_interpreter_cannot_be_run() async throws {
        let rig = try Rig(workshop.linux("#!\n"))
        let error = await failure { try await rig.start() }
        #expect(isError(error, .internalError))
        #expect(rig.state == .error)
        #expect((error?.userInfo[NSUnderlyingErrorKey] as? NSError)?.code == Int(ENOEXEC))
    }

    @Test func the_guest_gets_its_description() async throws {
        let script = """
            #!/bin/sh
            echo "cpus $VZ_GUEST_CPUS memory $VZ_GUEST_MEMORY mac $VZ_GUEST_MAC"
            echo "disk $VZ_GUEST_DISK"
            echo "vsock $VZ_GUEST_VSOCK home $HOME restored ${VZ_GUEST_RESTORED:-no} path ${PATH:+is there}"
            echo "mode $(stat -c %a "$VZ_GUEST_VSOCK") $(stat -c %a "$0")"
            echo "others $(env | grep -c -v -E '^(VZ_GUEST_|HOME=|PATH=|PWD=|SHLVL=|_=|OLDPWD=)')"

            """
        let configuration = try workshop.mac(script)
        configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
        let address = try #require(VZMACAddress(string: "0a:00:00:00:00:01"))
        configuration.networkDevices.first?.macAddress = address
        let rig = try Rig(configuration)
        try await rig.start()
        #expect(try await rig.console.line() == "cpus 2 memory \(1 << 30) mac 0a:00:00:00:00:01")
        #expect(try await rig.console.line() == "disk \(workshop.url("mac.img").path)")
        let line = try #require(try await rig.console.line())
        let directory = try #require(line.split(separator: " ").dropFirst().first)
        #expect(line == "vsock \(directory) home \(directory) restored no path is there")
        #expect(directory.hasPrefix("/tmp/") && directory.utf8.count < 80)
        #expect(try await rig.console.line() == "mode 700 700")
        #expect(try await rig.console.line() == "others 0")
        #expect(try await rig.log.next() == .stopped(.stopped))
        #expect(!FileManager.default.fileExists(atPath: String(directory)))
    }

    @Test func a_mac_in_recovery_gets_a_variable() async throws {
        let rig = try Rig(workshop.mac("#!/bin/sh\necho recovery ${VZ_GUEST_RECOVERY:-no}\n"))
        try await rig.start()
        #expect(try await rig.console.line() == "recovery no")
        #expect(try await rig.log.next() == .stopped(.stopped))
        let _: Void = try await rig.ask { vm, done in
            let options = VZMacOSVirtualMachineStartOptions()
            options.startUpFromMacOSRecovery = true
            vm.start(options: options) { done(Rig.result($0)) }
        }
        #expect(try await rig.console.line() == "recovery 1")
    }

    @Test func a_kernel_is_run_with_its_command_line() async throws {
        let configuration = try workshop.linux()
        let kernel = try workshop.file("kernel", "#!/bin/sh\necho \"$0 $# $1 $2\"\n", mode: 0o700)
        let loader = VZLinuxBootLoader(kernelURL: kernel)
        loader.commandLine = "console=hvc0  quiet"
        configuration.bootLoader = loader
        let rig = try Rig(configuration)
        try await rig.start()
        #expect(try await rig.console.line() == "\(kernel.path) 2 console=hvc0 quiet")
    }

    @Test func a_kernel_that_is_a_script_but_may_not_be_run_is_run_as_one() async throws {
        let configuration = try workshop.linux()
        let kernel = try workshop.file("kernel", "#!/bin/sh\necho booted\n")
        configuration.bootLoader = VZLinuxBootLoader(kernelURL: kernel)
        let rig = try Rig(configuration)
        try await rig.start()
        #expect(try await rig.console.line() == "booted")
    }

    @Test func the_guest_reads_the_serial_port_and_what_it_says_on_either_stream_is_written_there()
        async throws
    {
        let script = "#!/bin/sh\nread word\necho out $word\necho err $word >&2\nexec sleep 1000\n"
        let configuration = try workshop.linux(script)
        let rig = try Rig(configuration)
        let input = Pipe()
        let serialPort = VZVirtioConsoleDeviceSerialPortConfiguration()
        serialPort.attachment = VZFileHandleSerialPortAttachment(
            fileHandleForReading: input.fileHandleForReading, fileHandleForWriting: rig.console.output)
        configuration.serialPorts = [serialPort]
        let vm = VZVirtualMachine(configuration: configuration, queue: rig.queue)
        rig.queue.sync { vm.start { _ in } }
        input.fileHandleForWriting.write(Data("hello\n".utf8))
        #expect(try await rig.console.line() == "out hello")
        #expect(try await rig.console.line() == "err hello")
    }

    @Test func a_disk_without_a_program_is_a_guest_that_ignores_the_power_button_until_it_is_stopped()
        async throws
    {
        let rig = try Rig(workshop.linux("not a script"))
        try await rig.start()
        try rig.look { try $0.requestStop() }
        try await rig.pause()
        try await rig.resume()
        #expect(rig.state == .running)
        #expect(rig.log.isEmpty)
        try await rig.stop()
        #expect(rig.state == .stopped)
        #expect(rig.log.isEmpty)
    }

    @Test func the_power_button_reaches_the_guest() async throws {
        let script = "#!/bin/sh\ntrap 'echo pressed; kill $!; exit 0' TERM\nsleep 1000 &\necho up\nwait\n"
        let rig = try Rig(workshop.linux(script))
        try await rig.start()
        #expect(try await rig.console.line() == "up")
        try rig.look { try $0.requestStop() }
        #expect(try await rig.console.line() == "pressed")
        #expect(try await rig.log.next() == .stopped(.stopped))
    }

    @Test func a_guest_may_ignore_the_power_button() async throws {
        let rig = try Rig(
            workshop.linux("#!/bin/sh\ntrap 'echo no' TERM\necho up\nwhile :; do read x; done < /dev/zero\n"))
        try await rig.start()
        #expect(try await rig.console.line() == "up")
        try rig.look { try $0.requestStop() }
        #expect(rig.state == .running)
        try await rig.stop()
        #expect(rig.state == .stopped)
    }

    @Test func stopping_ends_all_of_the_guest_also_what_left_its_process_group() async throws {
        let script = """
            #!/bin/sh
            trap '' TERM HUP
            sleep 1000 &
            echo child $!
            setsid sh -c 'echo child $$; exec sleep 1000' &
            echo leader $$
            wait

            """
        let rig = try Rig(workshop.linux(script))
        try await rig.start()
        var processes: [pid_t] = []
        for _ in 0..<3 {
            let fields = try #require(try await rig.console.line()).split(separator: " ")
            processes.append(try #require(fields.last.flatMap { pid_t($0) }))
        }
        #expect(processes.allSatisfy { !Processes.isGone($0) })
        try await rig.stop()
        #expect(rig.state == .stopped)
        #expect(rig.log.isEmpty, "a stop is not an end that the guest chose")
        try await until { processes.allSatisfy(Processes.isGone) }
    }

    @Test func what_a_guest_that_powers_off_leaves_in_its_group_is_ended() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\nsleep 1000 > /dev/null 2>&1 &\necho $!\n"))
        try await rig.start()
        let child = try #require(try await rig.console.line().flatMap { pid_t($0) })
        #expect(try await rig.log.next() == .stopped(.stopped))
        try await until { Processes.isGone(child) }
    }

    @Test func pausing_stops_the_guest_and_its_children_and_resuming_lets_them_go_on() async throws {
        let script = """
            #!/bin/sh
            setsid sh -c 'while :; do echo child; done' > /dev/null &
            echo $! $$
            while :; do echo >> "$VZ_GUEST_DISK.work"; done

            """
        let rig = try Rig(workshop.linux(script))
        try await rig.start()
        let processes = try #require(try await rig.console.line()).split(separator: " ").compactMap {
            pid_t($0)
        }
        try #require(processes.count == 2)
        func work() -> off_t {
            var status = stat()
            return stat(workshop.url("linux.img.work").path, &status) == 0 ? status.st_size : 0
        }

        try await until { work() > 10 }
        try await rig.pause()
        #expect(Processes.state(processes[1]) == "T")
        try await until { Processes.state(processes[0]) == "T" }
        let before = work()
        for _ in 0..<100 {
            #expect(processes.allSatisfy { Processes.state($0) == "T" })
            #expect(work() == before)
        }

        try await rig.resume()
        #expect(rig.state == .running)
        try await until { work() > before }
        #expect(Processes.state(processes[0]) != "T")
    }

    @Test func a_paused_guest_can_be_stopped() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\necho $$\nexec sleep 1000\n"))
        try await rig.start()
        let guest = try #require(try await rig.console.line().flatMap { pid_t($0) })
        try await rig.pause()
        try await rig.stop()
        #expect(rig.state == .stopped)
        #expect(Processes.isGone(guest))
    }

    @Test func a_guest_that_stopped_itself_can_still_be_paused_and_resumed() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\necho $$\nkill -STOP $$\necho on\nexec sleep 1000\n"))
        try await rig.start()
        let guest = try #require(try await rig.console.line().flatMap { pid_t($0) })
        try await until { Processes.state(guest) == "T" }
        try await rig.pause()
        #expect(rig.state == .paused)
        try await rig.resume()
        #expect(try await rig.console.line() == "on")
    }

    @Test func a_guest_that_dies_while_it_is_paused_is_reported() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\necho $$\nexec sleep 1000\n"))
        try await rig.start()
        let guest = try #require(try await rig.console.line().flatMap { pid_t($0) })
        try await rig.pause()
        kill(guest, SIGKILL)
        let reason = "The guest stopped unexpectedly: it ended by signal 9."
        #expect(try await rig.log.next() == .failed(.error, code: 1, reason: reason))
    }

    @Test func a_guest_has_default_signals_whatever_this_process_ignores() async throws {
        let before = signal(SIGPIPE, SIG_IGN)
        defer { signal(SIGPIPE, before) }
        let script = "#!/bin/sh\nsed -n 's/^Sig\\(Blk\\|Ign\\):\\t*/\\1 /p' /proc/self/status\n"
        let rig = try Rig(workshop.linux(script))
        try await rig.start()
        #expect(try await rig.console.line() == "Blk 0000000000000000")
        let line = try #require(try await rig.console.line())
        // glibc uses 32 and 33 itself: its posix_spawn has children ignore them, so whatever make starts does.
        let internals: UInt64 = 3 << 31
        let ignored = try #require(UInt64(line.dropFirst("Ign ".count), radix: 16), "\(line)")
        #expect(ignored & ~internals == 0, "\(line)")
    }

    @Test func a_guest_inherits_no_descriptors() async throws {
        let leak = open("/dev/null", O_RDONLY)
        defer { close(leak) }
        let rig = try Rig(
            workshop.linux("#!/bin/sh\nfor f in /proc/$$/fd/*; do echo \"${f##*/}\"; done\necho end\n"))
        try await rig.start()
        var descriptors: [String] = []
        while let line = try await rig.console.line(), line != "end" { descriptors.append(line) }
        // The shell opens the descriptor through which it reads the script.
        #expect(descriptors.filter { Int($0) ?? 0 < 10 && $0 != "3" } == ["0", "1", "2"])
        #expect(!descriptors.contains("\(leak)") || leak < 4)
    }
}
