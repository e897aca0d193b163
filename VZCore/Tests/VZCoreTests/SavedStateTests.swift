import Foundation
import Testing
import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct SavedStates {
        let place = TestDirectory()

        /// Says on the console whether it was booted or restored.
        private static let guest = "#!/bin/sh\necho \"restored=${VZ_GUEST_RESTORED:-0}\"\nexec sleep 1000\n"

        private func spec(_ name: String = "vm") throws -> MachineSpec {
            .small(try place.bundle(name, guest: Self.guest)) {
                $0.consoleLog = "console.log"
                $0.macAddress = "52:54:00:12:34:56"
            }
        }

        private func save(_ spec: MachineSpec, to path: String) async throws {
            try await withMachine(spec) { machine, log in
                #expect(machine.saveSupport == nil)
                try await machine.start()
                try await until { try place.read("vm/console.log").contains("restored=0") }
                try await machine.pause()
                try await machine.save(to: path)
                #expect(await machine.state == .paused)
                #expect(log.states.suffix(2) == [.saving, .paused])
            }
        }

        @Test func a_saved_state_goes_on_in_another_machine() async throws {
            let spec = try spec()
            try await save(spec, to: place("state"))
            #expect(try place.mode(of: "state") == 0o600, "it holds the guest's memory")
            #expect(try place.names() == ["state", "vm"])
            try await withMachine(spec) { machine, log in
                try await machine.restore(from: place("state"))
                #expect(await machine.state == .paused)
                #expect(log.states == [.restoring, .paused])
                try await machine.resume()
                try await until { try place.read("vm/console.log").contains("restored=1") }
            }
        }

        @Test func a_state_is_not_written_over_another() async throws {
            let spec = try spec()
            try place.write("precious", to: "state")
            try await withMachine(spec) { machine, _ in
                try await machine.start()
                try await machine.pause()
                let refused = await failure { try await machine.save(to: place("state")) }
                #expect(refused.code == .exists)
                #expect(refused.reason.contains(place("state")))
            }
            #expect(try place.read("state") == "precious")
        }

        @Test func what_a_dead_process_left_half_written_is_replaced() async throws {
            try place.write("half", to: "state.partial")
            try await save(try spec(), to: place("state"))
            #expect(try place.names() == ["state", "vm"])
        }

        @Test func a_state_that_cannot_be_written_is_reported() async throws {
            try await withMachine(try spec()) { machine, _ in
                try await machine.start()
                try await machine.pause()
                let refused = await failure { try await machine.save(to: place("nowhere/state")) }
                #expect(refused.code == .saveFailed)
                #expect(await machine.state == .paused)
            }
            #expect(try place.names() == ["vm"])
        }

        /// Puts a directory where the state is to be, once it is being written.
        private struct InTheWay: MachineObserver {
            let path: String

            func machine(_ id: UInt64, did event: MachineEvent) {
                if event == .state(.saving) {
                    try? FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
                }
            }
        }

        @Test func a_state_that_cannot_take_its_place_is_reported_and_removed() async throws {
            let machine = try Machine(id: 7, spec: spec(), observer: InTheWay(path: place("state/mine")))
            try await machine.start()
            try await machine.pause()
            let refused = await failure { try await machine.save(to: place("state")) }
            #expect(refused.code == .io)
            #expect(refused.reason.hasPrefix("renaming a saved state to \(place("state")): "))
            #expect(await machine.state == .paused)
            await machine.close()
            #expect(try place.names() == ["state", "vm"])
        }

        @Test func a_state_of_another_configuration_is_refused_and_the_machine_boots_instead() async throws {
            let spec = try spec()
            try await save(spec, to: place("state"))
            var other = spec
            other.macAddress = "52:54:00:12:34:57"
            try await withMachine(other) { machine, log in
                let refused = await failure { try await machine.restore(from: place("state")) }
                #expect(refused.code == .restoreFailed)
                #expect(refused.reason.contains("(VZErrorDomain 12)"))
                #expect(refused.reason.hasPrefix("restoring the state of the VM of \(spec.bundle): "))
                #expect(log.states.first == .restoring)
            }
            try await withMachine(other) { machine, _ in try await machine.start() }
        }

        @Test func a_state_that_is_not_there_is_refused() async throws {
            try await withMachine(try spec()) { machine, _ in
                let refused = await failure { try await machine.restore(from: place("nothing")) }
                #expect(refused.code == .restoreFailed)
            }
        }

        @Test func a_machine_that_cannot_be_saved_says_why_and_does_not_try() async throws {
            let bundle = try place.bundle(faults: "\"no_save\":true")
            try await withMachine(.small(bundle)) { machine, log in
                let verdict = try #require(machine.saveSupport)
                #expect(verdict.reason.hasPrefix("saving the state of the VM of \(bundle): "))
                try await machine.start()
                try await machine.pause()
                #expect(await failure { try await machine.save(to: place("state")) } == verdict)
                #expect(await failure { try await machine.restore(from: place("state")) } == verdict)
                #expect(!log.states.contains(.saving) && !log.states.contains(.restoring))
            }
        }

        @Test func a_linux_window_keeps_a_state_from_being_saved() throws {
            var spec = MachineSpec(
                bundle: try place.linuxBundle(), os: .linux, cpus: 1, memoryBytes: 256 << 20, savable: true)
            #expect(try Configuration(spec).saveSupport == nil)
            spec.display = .window
            #expect(try Configuration(spec).saveSupport != nil, "its keyboard is a USB device")
        }
    }
}
