import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Life {
        let place = TestDirectory()

        @Test func a_machine_starts_runs_and_is_stopped() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                #expect(await machine.state == .stopped)
                try await machine.start()
                #expect(await machine.state == .running)
                try await machine.stop()
                #expect(await machine.state == .stopped)
                #expect(log.states == [.starting, .running, .stopping, .stopped])
            }
        }

        @Test func a_stopped_machine_starts_again() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                for _ in 0..<2 {
                    try await machine.start()
                    try await machine.stop()
                }
                #expect(log.states.filter { $0 == .running }.count == 2)
            }
        }

        @Test func time_stands_still_between_pause_and_resume() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                try await machine.start()
                try await machine.pause()
                #expect(await machine.state == .paused)
                try await machine.resume()
                #expect(await machine.state == .running)
                #expect(log.states == [.starting, .running, .pausing, .paused, .resuming, .running])
            }
        }

        @Test func a_paused_machine_is_stopped() async throws {
            try await withMachine(.small(place.bundle())) { machine, _ in
                try await machine.start()
                try await machine.pause()
                try await machine.stop()
                #expect(await machine.state == .stopped)
            }
        }

        @Test func a_power_off_of_the_guest_is_an_event() async throws {
            try await withMachine(.small(place.bundle(guest: Guest.powersOff))) { machine, log in
                try await machine.start()
                await log.first(.state(.stopped))
                #expect(log.events.suffix(2) == [.guestStopped, .state(.stopped)], "the reason comes first")
                #expect(await machine.state == .stopped)
            }
        }

        @Test func a_guest_that_crashes_leaves_its_reason() async throws {
            try await withMachine(.small(place.bundle(guest: Guest.crashes))) { machine, log in
                try await machine.start()
                await log.first(.state(.error))
                guard case .stoppedWithError(let end) = log.events.dropLast().last else {
                    Issue.record("no reason in \(log.events)")
                    return
                }
                #expect(end.code == .internalError)
                #expect(end.reason.hasPrefix("running the VM of \(machine.spec.bundle): "))
                #expect(end.reason.contains("(VZErrorDomain 1)"))
                try await machine.stop()
                #expect(!log.events.contains(.guestStopped))
            }
        }

        @Test func the_power_button_is_pressed() async throws {
            let spec = MachineSpec.small(try place.bundle(guest: Guest.obedient)) {
                $0.consoleLog = "console.log"
            }
            try await withMachine(spec) { machine, log in
                try await machine.start()
                try await until { try place.read("vm/console.log").contains("up") }
                try await machine.requestStop()
                await log.first(.guestStopped)
                #expect(await machine.state == .stopped)
            }
        }

        @Test func a_guest_may_ignore_the_power_button() async throws {
            let bundle = try place.bundle(guest: Guest.obedient, faults: "\"ignore_request_stop\":true")
            try await withMachine(.small(bundle)) { machine, log in
                try await machine.start()
                try await machine.requestStop()
                #expect(await machine.state == .running)
                try await machine.stop()
                #expect(!log.events.contains(.guestStopped), "it was stopped from here")
            }
        }

        @Test func the_framework_may_end_a_machine_with_a_reason() async throws {
            let bundle = try place.bundle(faults: "\"stop_after_ms\":1,\"stop_error\":8")
            try await withMachine(.small(bundle)) { machine, log in
                try await machine.start()
                let event = await log.first { if case .stoppedWithError = $0 { true } else { false } }
                guard case .stoppedWithError(let end) = event else { return }
                #expect(end.code == .diskFull)
                await log.first(.state(.error))
            }
        }

        @Test func a_lost_network_is_reported_and_the_guest_runs_on() async throws {
            let bundle = try place.bundle(faults: "\"disconnect_network_after_ms\":1")
            try await withMachine(.small(bundle)) { machine, log in
                try await machine.start()
                let event = await log.first { if case .networkDisconnected = $0 { true } else { false } }
                guard case .networkDisconnected(let reason) = event else { return }
                #expect(reason.hasPrefix("connecting to the network the VM of \(bundle): "))
                #expect(reason.contains("(VZErrorDomain "))
                #expect(await machine.state == .running)
            }
        }

        @Test func what_does_not_fit_the_state_is_refused_with_a_reason() async throws {
            try await withMachine(.small(place.bundle())) { machine, _ in
                let saved = place("state")
                let calls: [(String, () async throws -> Void)] = [
                    ("pausing", { try await machine.pause() }), ("resuming", { try await machine.resume() }),
                    ("saving the state of", { try await machine.save(to: saved) }),
                    ("pressing the power button of", { try await machine.requestStop() }),
                    ("connecting to port 1 of", { _ = try await machine.connect(toPort: 1) }),
                ]
                for (what, call) in calls {
                    let refused = await failure(of: call)
                    #expect(refused.code == .invalidState)
                    #expect(refused.reason == "\(what) the VM of \(machine.spec.bundle): it is stopped")
                }
                try await machine.start()
                for call in [machine.start, { try await machine.restore(from: saved) }] {
                    let refused = await failure { try await call() }
                    #expect(refused.code == .invalidState)
                    #expect(refused.reason.hasSuffix("it is running"))
                }
            }
        }

        @Test func stopping_what_is_over_is_fine() async throws {
            try await withMachine(.small(place.bundle())) { machine, log in
                try await machine.stop()
                #expect(log.events.isEmpty)
            }
        }

        @Test func pain_04_a_third_macos_vm_is_over_the_limit() async throws {
            try await withMachine(.small(place.bundle("a"))) { first, _ in
                try await withMachine(.small(place.bundle("b"))) { second, _ in
                    try await first.start()
                    try await second.start()
                    try await withMachine(.small(place.bundle("c"))) { third, _ in
                        let refused = await failure { try await third.start() }
                        #expect(refused.code == .limitExceeded)
                        #expect(refused.reason.contains("(VZErrorDomain 6)"))
                        #expect(refused.reason.contains("two macOS VMs"))
                        try await first.stop()
                        try await third.start()
                    }
                }
            }
        }

        @Test(arguments: [
            ("start", 1, FailureCode.internalError), ("start", 5, .diskImage), ("start", 6, .limitExceeded),
            ("start", 8, .diskFull), ("pause", 1, .internalError), ("resume", 4, .invalidState),
            ("stop", 1, .internalError), ("save", 11, .saveFailed), ("save", 8, .diskFull),
            ("connect", 1, .connectFailed),
        ])
        func a_refusal_of_the_framework_keeps_its_code(what: String, raw: Int, code: FailureCode) async throws
        {
            let bundle = try place.bundle(faults: "\"fail\":{\"\(what)\":\(raw)}")
            let log = Log()
            let machine = try Machine(id: 7, spec: .small(bundle), observer: log)
            let refused = await failure {
                try await machine.start()
                if what == "connect" { _ = try await machine.connect(toPort: 1) }
                if what != "stop" { try await machine.pause() }
                if what == "save" { try await machine.save(to: place("state")) }
                if what != "stop" { try await machine.resume() }
                try await machine.stop()
            }
            #expect(refused.code == code)
            #expect(refused.reason.contains("(VZErrorDomain \(raw))"))
            #expect(try place.names() == ["vm"], "nothing half-made stays")
            await machine.close()
            #expect(await machine.state == .stopped, "a VM that cannot be stopped ends with its object")
        }
    }
}
