import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct FaultTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    @Test func each_operation_fails_as_asked_and_leaves_the_state_as_it_was() async throws {
        let faults = """
            {"fail": {"start": 6, "pause": 1, "resume": 7, "stop": 1, "save": 11, "restore": 12, "connect": 9}}
            """
        let rig = try Rig(workshop.linux(faults: faults))
        let state = workshop.url("state")
        #expect(isError(await failure { try await rig.start() }, .virtualMachineLimitExceeded))
        #expect(isError(await failure { try await rig.restore(state) }, .restore))
        #expect(rig.state == .stopped)

        rig.look { $0.faults = Faults() }
        try await rig.start()
        rig.look { $0.faults = nil }
        #expect(isError(await failure { try await rig.pause() }, .internalError))
        #expect(isError(await failure { try await rig.stop() }, .internalError))
        #expect(isError(await failure { try await rig.connect(1) }, .operationCancelled))
        #expect(rig.state == .running)

        rig.look { $0.faults = Faults() }
        try await rig.pause()
        rig.look { $0.faults = nil }
        #expect(isError(await failure { try await rig.resume() }, .networkError))
        #expect(isError(await failure { try await rig.save(state) }, .save))
        #expect(rig.state == .paused)
    }

    @Test func an_operation_that_hangs_stays_in_its_state_and_its_machine_can_be_let_go() async throws {
        let answered = Waiting<Void>()
        var rig: Rig? = try Rig(workshop.linux(faults: #"{"hang": ["start", "connect"]}"#))
        let queue = try #require(rig?.queue)
        rig?.look { vm in
            vm.start { _ in answered.add(()) }
            (vm.socketDevices.first as? VZVirtioSocketDevice)?.connect(toPort: 1) { _ in answered.add(()) }
        }
        queue.sync {}
        #expect(rig?.state == .starting)
        weak var vm = rig?.astray
        rig = nil
        queue.sync {}
        #expect(vm == nil)
        #expect(answered.isEmpty)
    }

    @Test func a_start_takes_as_long_as_asked() async throws {
        let rig = try Rig(workshop.linux(faults: #"{"start_delay_ms": 100}"#))
        let before = ContinuousClock.now
        try await rig.start()
        #expect(before.duration(to: .now) >= .milliseconds(100))
    }

    @Test func a_guest_powers_off_by_itself_when_asked() async throws {
        let rig = try Rig(workshop.linux("#!/bin/sh\nexec sleep 1000\n", faults: #"{"stop_after_ms": 10}"#))
        try await rig.start()
        #expect(try await rig.log.next() == .stopped(.stopped))
    }

    @Test func a_guest_fails_by_itself_when_asked() async throws {
        let rig = try Rig(workshop.linux(faults: #"{"stop_after_ms": 10, "stop_error": 8}"#))
        try await rig.start()
        let reason = "A fault was asked for: running ends with outOfDiskSpace (8)."
        #expect(try await rig.log.next() == .failed(.error, code: 8, reason: reason))
    }

    @Test func the_power_button_is_ignored_when_asked() async throws {
        let script = "#!/bin/sh\ntrap 'echo pressed; kill $!; exit 0' TERM\nsleep 1000 &\necho up\nwait\n"
        let rig = try Rig(workshop.linux(script, faults: #"{"ignore_request_stop": true}"#))
        try await rig.start()
        #expect(try await rig.console.line() == "up")
        try rig.look { try $0.requestStop() }
        try await rig.stop()
        try rig.console.output.close()
        #expect(try await rig.console.line() == nil)
    }

    @Test func the_network_is_lost_when_asked() async throws {
        let rig = try Rig(workshop.mac(faults: #""disconnect_network_after_ms": 10"#))
        try await rig.start()
        #expect(try await rig.log.next() == .networkLost(code: 7, isGone: true))
        #expect(rig.state == .running)
        rig.look { $0.networkDevices.first?.attachment = VZNATNetworkDeviceAttachment() }
        #expect(rig.look { $0.networkDevices.first?.attachment != nil })
    }

    @Test func a_configuration_cannot_be_saved_when_asked() throws {
        let configuration = try workshop.mac(faults: #""no_save": true"#)
        try configuration.validate()
        #expect(throws: VZError.self) { try configuration.validateSaveRestoreSupport() }
    }

    @Test func faults_are_read_from_the_initial_ramdisk_too() async throws {
        let configuration = try workshop.linux()
        let loader = VZLinuxBootLoader(kernelURL: try workshop.file("kernel"))
        loader.initialRamdiskURL = try workshop.file("initrd", #"{"standin": {"fail": {"start": 1}}}"#)
        configuration.bootLoader = loader
        let rig = try Rig(configuration)
        #expect(isError(await failure { try await rig.start() }, .internalError))
    }

    @Test func a_file_that_asks_for_nothing_is_no_fault() throws {
        for content in ["", "aux", "{", "{}", #"{"other": 1}"#, "[1]"] {
            let url = try workshop.file("aux", content)
            #expect(StandIn.violations { _ = StandInFile(url) } == [])
            #expect(StandInFile(url)?.faults == nil)
        }
        #expect(StandInFile(workshop.url("missing")) == nil)
    }

    @Test func a_fault_that_does_not_exist_is_caught() throws {
        let wrong = [
            #"{"hangs": ["start"]}"#, #"{"hang": "start"}"#, #"{"hang": ["begin"]}"#,
            #"{"fail": {"start": 99}}"#,
            #"{"start_delay_ms": -1}"#, #"{"stop_after_ms": "soon"}"#, "1",
        ]
        for faults in wrong {
            let url = try workshop.file("aux", "{\"standin\": \(faults)}")
            let caught = StandIn.violations { _ = StandInFile(url) }
            #expect(caught.count == 1, "\(faults)")
        }
    }
}
