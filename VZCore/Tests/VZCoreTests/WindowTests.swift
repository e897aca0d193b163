import AppKit
import Foundation
import Testing
@_spi(StandIn) import Virtualization

@testable import VZCore

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Windows {
        let place = TestDirectory()

        private func spec() throws -> MachineSpec {
            .small(try place.bundle()) { $0.display = .window }
        }

        @Test func a_machine_with_a_window_lives_on_the_main_queue() async throws {
            try await withMachine(spec()) { machine, log in
                try await machine.start()
                try await VMWindow.show(machine, title: "vm 7")
                await MainActor.run { machine.assumeIsolated { #expect($0.spec.display == .window) } }
                try await machine.stop()
                #expect(log.states == [.starting, .running, .stopping, .stopped])
            }
        }

        @Test @MainActor func a_machine_with_a_window_is_made_on_the_main_thread_too() async throws {
            let machine = try Machine(id: 7, spec: spec(), observer: Log())
            try await machine.start()
            await machine.close()
        }

        @Test func a_window_holds_no_closed_machine() async throws {
            do {
                let machine = try Machine(id: 7, spec: spec(), observer: Log())
                try await VMWindow.show(machine, title: "first")
                try await VMWindow.show(machine, title: "second")
                await machine.close()
                let refused = await failure { try await VMWindow.show(machine, title: "third") }
                #expect(refused.code == .noSuchMachine)
            }
            await until { VZCoreLiveness.machines == 0 && StandIn.liveMachines == 0 }
        }

        @Test func a_machine_made_without_a_window_has_none() async throws {
            try await withMachine(.small(place.bundle())) { machine, _ in
                let refused = await failure { try await VMWindow.show(machine, title: "vm") }
                #expect(refused.code == .invalidState)
                #expect(refused.reason.contains("it was created without a display"))
            }
        }

        @Test func a_process_with_a_window_runs_its_main_loop_until_that_is_stopped() async throws {
            let probe = Process()
            probe.executableURL = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
                .appendingPathComponent("WindowProbe")
            probe.arguments = [try place.bundle()]
            let output = Pipe()
            probe.standardOutput = output
            try probe.run()
            let said = try await blocking { try output.fileHandleForReading.readToEnd() ?? Data() }
            #expect(
                String(decoding: said, as: UTF8.self)
                    == "starting\nrunning\nshown\nstopping\nstopped\nclosed\nthe loop returned\n")
            probe.waitUntilExit()
            #expect(probe.terminationReason == .exit && probe.terminationStatus == 0)
        }
    }
}
