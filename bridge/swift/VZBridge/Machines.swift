import CVZBridge
import Synchronization
import VZCore

/// The machines Rust knows, by its numbers.
final class Machines: Sendable {
    static let all = Machines()
    private let open = Mutex<[UInt64: Machine]>([:])

    func open(_ id: UInt64, spec: MachineSpec) throws {
        let machine = try Machine(id: id, spec: spec, observer: RustObserver())
        open.withLock { $0[id] = machine }
    }

    func find(_ id: UInt64) throws -> Machine {
        guard let machine = open.withLock({ $0[id] }) else {
            throw VZFailure(code: .noSuchMachine, message: "there is no VM number \(id) (any more)")
        }
        return machine
    }

    func take(_ id: UInt64) -> Machine? {
        open.withLock { $0.removeValue(forKey: id) }
    }
}

/// Tells Rust. The numbers are those of `bridge/src/events.rs`.
struct RustObserver: MachineObserver {
    func machine(_ id: UInt64, did event: MachineEvent) {
        switch event {
        case .state(let state): tell(id, 0, Int64(state.rawValue))
        case .guestStopped: tell(id, 1)
        case .stoppedWithError(let failure): tell(id, 2, Int64(failure.code.rawValue), 0, failure.message)
        case .networkDisconnected(let words): tell(id, 3, 0, 0, words)
        case .guestConnected(let port, let descriptor): tell(id, 4, Int64(port), Int64(descriptor))
        case .progress(let done): tell(id, 5, Int64(done * 1_000_000))
        }
    }

    private func tell(
        _ id: UInt64, _ kind: Int32, _ value: Int64 = 0, _ extra: Int64 = 0, _ message: String = ""
    ) {
        vz_event(id, kind, value, extra, message.intoRustString())
    }
}
