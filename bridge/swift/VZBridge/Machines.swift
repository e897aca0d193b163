import CVZBridge
import Synchronization
import VZCore

/// The open machines, by the numbers that Rust gave them.
final class Machines: Sendable {
    static let all = Machines()
    private let open = Mutex<[UInt64: Machine]>([:])

    func open(_ id: UInt64, spec: MachineSpec) throws {
        let machine = try Machine(id: id, spec: spec, observer: RustObserver())
        open.withLock { $0[id] = machine }
    }

    func find(_ id: UInt64) throws -> Machine {
        guard let machine = open.withLock({ $0[id] }) else {
            throw VZFailure(code: .noSuchMachine, reason: "there is no open VM \(id)")
        }
        return machine
    }

    func take(_ id: UInt64) -> Machine? {
        open.withLock { $0.removeValue(forKey: id) }
    }
}

/// Sends events to Rust. The numbers are those of `bridge/src/events.rs`.
struct RustObserver: MachineObserver {
    func machine(_ id: UInt64, did event: MachineEvent) {
        switch event {
        case .state(let state): send(id, 0, Int64(state.rawValue))
        case .guestStopped: send(id, 1)
        case .stoppedWithError(let failure): send(id, 2, Int64(failure.code.rawValue), 0, failure.reason)
        case .networkDisconnected(let reason): send(id, 3, 0, 0, reason)
        case .guestConnected(let port, let descriptor): send(id, 4, Int64(port), Int64(descriptor))
        case .progress(let done): send(id, 5, Int64(done * 1_000_000))
        }
    }

    private func send(
        _ id: UInt64, _ kind: Int32, _ value: Int64 = 0, _ extra: Int64 = 0, _ text: String = ""
    ) {
        vz_event(id, kind, value, extra, text.intoRustString())
    }
}
