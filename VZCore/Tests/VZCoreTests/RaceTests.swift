import Foundation
import Synchronization
import Testing
@_spi(StandIn) import Virtualization

@testable import VZCore

/// SplitMix64: the same choices in every run of a seed.
struct Dice: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var value = state
        value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
        value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
        return value ^ (value >> 31)
    }
}

/// Only counts, and closes what it is given.
private final class Closer: MachineObserver {
    let closed = Locked<Set<UInt64>>([])
    let late = Atomic(0)

    func machine(_ id: UInt64, did event: MachineEvent) {
        if case .guestConnected(_, let descriptor) = event { close(descriptor) }
        if closed.with({ $0.contains(id) }) { late.add(1, ordering: .relaxed) }
    }
}

// swift-format-ignore: AlwaysUseLowerCamelCase
extension VZCoreTests {
    @Suite struct Races {
        let place = TestDirectory()

        /// One machine's life: a few calls at once, some of whose callers give up, then a close or a drop.
        private func live(_ id: UInt64, _ spec: MachineSpec, _ observer: Closer, _ dice: inout Dice)
            async throws
        {
            let machine = try Machine(id: id, spec: spec, observer: observer)
            let state = place("state-\(id)")
            var callers: [Task<Void, Never>] = []
            for _ in 0..<Int.random(in: 1...5, using: &dice) {
                let choice = Int.random(in: 0..<12, using: &dice)
                let caller = Task {
                    switch choice {
                    case 0..<5: try? await machine.start()
                    case 5: try? await machine.pause()
                    case 6: try? await machine.resume()
                    case 7: try? await machine.stop()
                    case 8: try? await machine.requestStop()
                    case 9: try? await machine.save(to: state)
                    case 10: await machine.close(grace: .milliseconds(choice))
                    default: if let descriptor = try? await machine.connect(toPort: 1) { close(descriptor) }
                    }
                }
                if Bool.random(using: &dice) { await Task.yield() }
                if Int.random(in: 0..<3, using: &dice) == 0 { caller.cancel() }
                callers.append(caller)
            }
            if Bool.random(using: &dice) { try? await machine.stop() }
            if Bool.random(using: &dice) { for caller in callers { await caller.value } }
            if Int.random(in: 0..<4, using: &dice) > 0 {
                await machine.close()
                observer.closed.with { _ = $0.insert(id) }
            }
            for caller in callers { await caller.value }
            unlink(state)
        }

        @Test(arguments: [1, 2] as [UInt64])
        func fault_15_thousands_of_lives_leave_nothing_behind(seed: UInt64) async throws {
            let bundles = try (0..<8).map { number in
                try place.linuxBundle("vm\(number)", guest: number % 4 == 0 ? Guest.obedient : Guest.idle)
            }
            let observer = Closer()
            let before = try openDescriptors()
            try await withThrowingTaskGroup(of: Void.self) { group in
                for (number, bundle) in bundles.enumerated() {
                    let spec = MachineSpec(
                        bundle: bundle, os: .linux, cpus: 1, memoryBytes: 256 << 20,
                        consoleLog: "console.log",
                        vsockListen: [5], savable: true)
                    group.addTask {
                        var dice = Dice(seed: seed &* 1000 &+ UInt64(number))
                        // A script is a process: those are dear, and fewer.
                        for life in 0..<(number % 4 == 0 ? 25 : 200) {
                            let id = UInt64(number * 1000 + life)
                            try await live(id, spec, observer, &dice)
                            // A dropped machine uses its files until it is closed.
                            await until { VZCoreLiveness.machines < 64 }
                        }
                    }
                }
                try await group.waitForAll()
            }
            await until { VZCoreLiveness.machines == 0 }
            await until {
                StandIn.liveMachines == 0 && StandIn.liveGuests == 0 && StandIn.liveConnections == 0
            }
            try await until { try openDescriptors() == before }
            #expect(observer.late.load(ordering: .relaxed) == 0, "no event comes after a close")
        }
    }
}
