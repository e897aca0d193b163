import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    /// Calls that meet one another, and callers that are cancelled.
    @Suite struct Calls {
        let place = TestDirectory()

        @Test func a_stop_waits_for_the_start_under_way() async throws {
            try await withMachine(.small(place.bundle(faults: "\"start_delay_ms\":50"))) { machine, log in
                async let started: Void = machine.start()
                await log.first(.state(.starting))
                try await machine.stop()
                try await started
                #expect(log.states == [.starting, .running, .stopping, .stopped])
            }
        }

        @Test func a_start_while_starting_is_refused() async throws {
            try await withMachine(.small(place.bundle(faults: "\"start_delay_ms\":50"))) { machine, log in
                async let started: Void = machine.start()
                await log.first(.state(.starting))
                let refused = await failure { try await machine.start() }
                #expect(refused.code == .invalidState)
                #expect(refused.reason.hasSuffix("it is starting"))
                try await started
            }
        }

        @Test func two_stops_both_come_back_with_the_machine_stopped() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                try await machine.start()
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for _ in 0..<4 { group.addTask { try await machine.stop() } }
                    try await group.waitForAll()
                }
                #expect(log.states.filter { $0 == .stopping }.count == 1)
                #expect(await machine.state == .stopped)
            }
        }

        @Test func a_cancelled_caller_returns_at_once_and_the_start_continues() async throws {
            try await withMachine(.small(place.bundle(faults: "\"start_delay_ms\":200"))) { machine, log in
                let caller = Task { try await machine.start() }
                await log.first(.state(.starting))
                caller.cancel()
                let refused = await failure { try await caller.value }
                #expect(refused.code == .cancelled)
                #expect(refused.reason.contains(machine.spec.bundle))
                #expect(await machine.state == .starting)
                await log.first(.state(.running))
                try await machine.pause()
            }
        }

        @Test func a_caller_cancelled_before_its_call_changes_nothing() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                let caller = Task {
                    await until { Task.isCancelled }
                    try await machine.start()
                }
                caller.cancel()
                #expect(await failure { try await caller.value }.code == .cancelled)
                #expect(await machine.state == .stopped)
                #expect(log.events.isEmpty)
            }
        }

        @Test func a_stop_cancelled_while_it_waits_stops_nothing() async throws {
            try await withMachine(.small(place.bundle(faults: "\"start_delay_ms\":100"))) { machine, log in
                async let started: Void = machine.start()
                await log.first(.state(.starting))
                let caller = Task { try await machine.stop() }
                // Two turns of the machine's queue: the stop waits by then.
                _ = await (machine.state, machine.state)
                caller.cancel()
                #expect(await failure { try await caller.value }.code == .cancelled)
                try await started
                #expect(await machine.state == .running)
            }
        }

        @Test func a_connection_that_comes_too_late_is_closed() async throws {
            try await withMachine(.small(place.bundle(guest: Guest.talkative))) { machine, _ in
                let guest = try GuestSide(place)
                try await machine.start()
                let listener = try await guest.listen(1024)
                let before = try openDescriptors()
                let caller = Task {
                    await until { Task.isCancelled }
                    return try await machine.connect(toPort: 1024)
                }
                caller.cancel()
                #expect(await failure { _ = try await caller.value }.code == .cancelled)
                for _ in 0..<50 {
                    let caller = Task { try await machine.connect(toPort: 1024) }
                    await Task.yield()
                    caller.cancel()
                    if case .success(let descriptor) = await caller.result { close(descriptor) }
                    _ = await machine.state
                }
                try await until { try openDescriptors() == before }
                listener.close()
            }
        }
    }

    /// The end of machines: in every state, closed or dropped.
    @Suite struct Ends {
        let place = TestDirectory()

        @Test(arguments: ["", "start", "start pause", "start stop"])
        func a_closed_machine_leaves_nothing(calls: String) async throws {
            let before = try openDescriptors()
            let log = Log()
            let spec = MachineSpec.small(try place.bundle()) {
                $0.consoleLog = "console.log"
                $0.vsockListen = [1024]
            }
            do {
                let machine = try Machine(id: 7, spec: spec, observer: log)
                for call in calls.split(separator: " ") {
                    switch call {
                    case "start": try await machine.start()
                    case "pause": try await machine.pause()
                    default: try await machine.stop()
                    }
                }
                #expect(VZCoreLiveness.machines == 1)
                await machine.close()
                #expect(await machine.state == .stopped)
                #expect(log.states.last ?? .stopped == .stopped)
                let before = log.events.count
                await machine.close()
                #expect(log.events.count == before)
            }
            await until { VZCoreLiveness.machines == 0 }
            try await until { try openDescriptors() == before }
        }

        @Test func every_call_on_a_closed_machine_fails() async throws {
            let machine = try Machine(id: 7, spec: .small(place.bundle()), observer: Log())
            await machine.close()
            let calls: [() async throws -> Void] = [
                machine.start, machine.pause, machine.resume, machine.stop,
                { try await machine.requestStop() },
                { try await machine.save(to: place("s")) }, { try await machine.restore(from: place("s")) },
                { _ = try await machine.connect(toPort: 1) },
            ]
            for call in calls {
                let refused = await failure(of: call)
                #expect(refused.code == .noSuchMachine)
                #expect(refused.reason.hasSuffix("the machine is closed"))
            }
        }

        @Test func a_close_waits_for_the_start_under_way_and_stops_the_guest() async throws {
            let log = Log()
            let machine = try Machine(
                id: 7, spec: .small(place.bundle(faults: "\"start_delay_ms\":50")), observer: log)
            async let started: Void = machine.start()
            await log.first(.state(.starting))
            await withTaskGroup(of: Void.self) { group in
                for _ in 0..<3 { group.addTask { await machine.close() } }
            }
            try await started
            #expect(log.states == [.starting, .running, .stopping, .stopped])
        }

        @Test(arguments: ["start", "pause", "save", "stop"])
        func what_the_framework_never_answers_ends_with_the_grace(hangs: String) async throws {
            let log = Log()
            let bundle = try place.bundle(faults: "\"hang\":[\"\(hangs)\"]")
            do {
                let machine = try Machine(id: 7, spec: .small(bundle), observer: log)
                let caller = Task {
                    try await machine.start()
                    if hangs == "stop" { return try await machine.stop() }
                    try await machine.pause()
                    try await machine.save(to: place("state"))
                }
                let waitedFor: MachineState =
                    switch hangs {
                    case "start": .starting
                    case "pause": .pausing
                    case "save": .saving
                    default: .stopping
                    }
                await log.first(.state(waitedFor))
                await machine.close(grace: .milliseconds(50))
                #expect(await failure { try await caller.value }.code == .cancelled)
                #expect(await machine.state == .stopped)
                #expect(log.states.last == .stopped)
                #expect(try place.names() == ["vm"])
            }
            await until { VZCoreLiveness.machines == 0 }
        }

        @Test func no_event_comes_after_the_close() async throws {
            let log = Log()
            let machine = try Machine(
                id: 7, spec: .small(place.bundle(guest: Guest.powersOff)), observer: log)
            try await machine.start()
            await machine.close()
            let before = log.events
            #expect(before.last == .state(.stopped))
            _ = await machine.state
            #expect(log.events == before)
        }

        @Test func a_dropped_machine_takes_its_guest_along() async throws {
            let before = try openDescriptors()
            let log = Log()
            do {
                let spec = MachineSpec.small(try place.bundle()) { $0.consoleLog = "console.log" }
                let machine = try Machine(id: 7, spec: spec, observer: log)
                try await machine.start()
            }
            await log.first(.state(.stopped))
            await until { VZCoreLiveness.machines == 0 }
            try await until { try openDescriptors() == before }
        }

        @Test func a_machine_dropped_while_it_starts_ends_when_it_has_started() async throws {
            let log = Log()
            let bundle = try place.bundle(faults: "\"start_delay_ms\":50")
            do {
                let machine = try Machine(id: 7, spec: .small(bundle), observer: log)
                let caller = Task { [machine] in try await machine.start() }
                await log.first(.state(.starting))
                caller.cancel()
                _ = await caller.result
            }
            await log.first(.state(.stopped))
            #expect(log.states == [.starting, .running, .stopping, .stopped])
            await until { VZCoreLiveness.machines == 0 }
        }
    }
}
