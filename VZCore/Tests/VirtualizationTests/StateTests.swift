import Foundation
import Testing

@testable @_spi(StandIn) import Virtualization

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct StateTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    @Test func a_machine_goes_through_its_states_and_back() async throws {
        let rig = try Rig(workshop.linux())
        #expect(rig.state == .stopped)
        try await rig.start()
        #expect(rig.state == .running)
        try await rig.pause()
        #expect(rig.state == .paused)
        try await rig.resume()
        #expect(rig.state == .running)
        try await rig.stop()
        #expect(rig.state == .stopped)
        try await rig.start()
        #expect(rig.state == .running)
    }

    @Test func a_call_is_answered_after_it_has_returned_and_meanwhile_the_state_says_so() async throws {
        let rig = try Rig(workshop.linux())
        let seen: [VZVirtualMachine.State] = try await rig.ask { vm, done in
            var seen: [VZVirtualMachine.State] = []
            vm.start { result in
                seen.append(vm.state)
                done(result.map { seen })
            }
            seen.append(vm.state)
        }
        #expect(seen == [.starting, .running])
        let pausing: VZVirtualMachine.State = rig.look { vm in
            vm.pause { _ in }
            return vm.state
        }
        #expect(pausing == .pausing)
    }

    @Test func answers_come_on_the_machines_queue() async throws {
        let rig = try Rig(workshop.linux())
        let queue = rig.queue
        let _: Void = try await rig.ask { vm, done in
            vm.start {
                dispatchPrecondition(condition: .onQueue(queue))
                done($0)
            }
        }
        let refused: Void? = try? await rig.ask { vm, done in
            vm.start {
                dispatchPrecondition(condition: .onQueue(queue))
                done($0)
            }
        }
        #expect(refused == nil)
    }

    @Test func what_can_be_done_follows_from_the_state() async throws {
        @Sendable func can(_ vm: VZVirtualMachine) -> [Bool] {
            [vm.canStart, vm.canStop, vm.canPause, vm.canResume, vm.canRequestStop]
        }
        let rig = try Rig(workshop.linux())
        #expect(rig.look { can($0) } == [true, false, false, false, false])
        try await rig.start()
        #expect(rig.look { can($0) } == [false, true, true, false, true])
        try await rig.pause()
        #expect(rig.look { can($0) } == [false, true, false, true, false])
        let stopping = rig.look { vm in
            vm.stop { _ in }
            return can(vm)
        }
        #expect(stopping == [false, false, false, false, false])
    }

    @Test func a_transition_from_the_wrong_state_is_refused_and_changes_nothing() async throws {
        let rig = try Rig(workshop.linux())
        for wrong in [rig.pause, rig.resume, rig.stop] {
            let error = await failure { try await wrong() }
            #expect(isError(error, .invalidVirtualMachineStateTransition))
            #expect(rig.state == .stopped)
        }
        try await rig.start()
        for wrong in [rig.start, rig.resume] {
            let error = await failure { try await wrong() }
            #expect(isError(error, .invalidVirtualMachineStateTransition))
            #expect(rig.state == .running)
        }
        let error = await failure { try await rig.start() }
        #expect(
            error?.localizedDescription == "Transition from state “running” to state “starting” is invalid.")
    }

    @Test func saving_restoring_and_pressing_the_power_button_need_their_states() async throws {
        let rig = try Rig(workshop.linux())
        let state = workshop.url("state")
        #expect(isError(await failure { try await rig.save(state) }, .invalidVirtualMachineState))
        let pressed = await failure { try rig.look { try $0.requestStop() } }
        #expect(isError(pressed, .invalidVirtualMachineState))
        #expect(
            pressed?.localizedDescription
                == "Virtual machine state “stopped” is invalid for requesting a stop.")
        try await rig.start()
        #expect(isError(await failure { try await rig.save(state) }, .invalidVirtualMachineState))
        #expect(isError(await failure { try await rig.restore(state) }, .invalidVirtualMachineState))
        #expect(rig.state == .running)
        #expect(!FileManager.default.fileExists(atPath: state.path))
    }

    @Test func a_machine_does_not_follow_later_changes_of_its_configuration() async throws {
        let configuration = try workshop.linux("#!/bin/sh\necho cpus $VZ_GUEST_CPUS\n")
        configuration.cpuCount = 3
        let rig = try Rig(configuration)
        configuration.cpuCount = 1
        configuration.storageDevices = []
        try await rig.start()
        #expect(try await rig.console.line() == "cpus 3")
    }

    @Test func a_machine_that_is_let_go_takes_its_guest_with_it() async throws {
        var rig: Rig? = try Rig(workshop.linux("#!/bin/sh\necho $VZ_GUEST_VSOCK\nexec sleep 1000\n"))
        try await rig?.start()
        let console = try #require(rig?.console)
        let directory = try #require(try await console.line())
        #expect(FileManager.default.fileExists(atPath: directory))
        weak var vm = rig?.astray
        rig = nil
        #expect(vm == nil)
        // The last writer of the console has ended with the guest.
        try console.output.close()
        #expect(try await console.line() == nil)
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
@Suite(.timeLimit(.minutes(5))) struct QueueTests {
    private let workshop: TestDirectory

    init() throws { workshop = try TestDirectory() }

    @Test func every_use_of_a_machine_outside_its_queue_is_caught() throws {
        let rig = try Rig(workshop.linux())
        let vm = rig.astray
        let uses: [(String, (VZVirtualMachine) -> Void)] = [
            ("state", { _ = $0.state }), ("state", { _ = $0.canStart }), ("state", { _ = $0.canStop }),
            ("state", { _ = $0.canPause }), ("state", { _ = $0.canResume }),
            ("state", { _ = $0.canRequestStop }),
            ("delegate", { _ = $0.delegate }), ("delegate", { $0.delegate = nil }),
            ("socketDevices", { _ = $0.socketDevices }), ("networkDevices", { _ = $0.networkDevices }),
            ("memoryBalloonDevices", { _ = $0.memoryBalloonDevices }),
            ("pause(completionHandler:)", { $0.pause { _ in } }),
            ("resume(completionHandler:)", { $0.resume { _ in } }),
            ("stop(completionHandler:)", { $0.stop { _ in } }),
            ("requestStop()", { try? $0.requestStop() }),
            (
                "saveMachineStateTo(url:completionHandler:)",
                { $0.saveMachineStateTo(url: .currentDirectory()) { _ in } }
            ),
        ]
        for (name, use) in uses {
            let caught = StandIn.violations { use(vm) }
            let worded =
                "VZVirtualMachine.\(name) was used outside the virtual machine's queue \"test.machine\""
            #expect(!caught.isEmpty && caught.allSatisfy { $0 == worded }, "\(name)")
        }
        let starts = StandIn.violations {
            vm.start { _ in }
            vm.start(options: VZMacOSVirtualMachineStartOptions()) { _ in }
            vm.restoreMachineStateFrom(url: .currentDirectory()) { _ in }
        }
        #expect(starts.count == 3)
    }

    @Test func every_use_of_a_device_outside_the_queue_is_caught() throws {
        let configuration = try workshop.mac()
        configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
        configuration.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
        let rig = try Rig(configuration)
        let devices = rig.look {
            Transfer(value: ($0.socketDevices, $0.networkDevices, $0.memoryBalloonDevices))
        }.value
        let socket = try #require(devices.0.first as? VZVirtioSocketDevice)
        let network = try #require(devices.1.first)
        let balloon = try #require(devices.2.first as? VZVirtioTraditionalMemoryBalloonDevice)
        let uses: [() -> Void] = [
            { socket.connect(toPort: 1) { _ in } },
            { socket.setSocketListener(VZVirtioSocketListener(), forPort: 1) },
            { socket.removeSocketListener(forPort: 1) }, { _ = network.attachment },
            { network.attachment = nil },
            { _ = balloon.targetVirtualMachineMemorySize }, { balloon.targetVirtualMachineMemorySize = 1 },
        ]
        for use in uses {
            #expect(StandIn.violations(during: use).count == 1)
        }
    }

    @Test func the_queue_itself_may_be_read_anywhere_and_is_the_one_given() throws {
        let rig = try Rig(workshop.linux())
        var isTheSame = false
        #expect(StandIn.violations { isTheSame = rig.astray.queue === rig.queue } == [])
        #expect(isTheSame)
    }

    @Test func a_queue_that_targets_the_machines_is_on_it() throws {
        let rig = try Rig(workshop.linux())
        let above = DispatchQueue(label: "test.above", target: rig.queue)
        #expect(above.sync { StandIn.violations { _ = rig.astray.state } } == [])
    }

    @Test func a_machine_of_an_invalid_configuration_is_caught() throws {
        let configuration = try workshop.linux()
        configuration.cpuCount = 0
        let caught = StandIn.violations { _ = VZVirtualMachine(configuration: configuration) }
        #expect(
            caught == [
                "a machine was made of an invalid configuration: The number of CPUs, 0, is not allowed."
            ])
    }
}
