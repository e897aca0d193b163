import Virtualization

/// A machine's state: `VZVirtualMachine.State` with its numbers (SDK 26.5).
public enum MachineState: Int32, CaseIterable, Sendable {
    /// Not started yet, or ended.
    case stopped = 0
    case running = 1
    /// The guest does not execute.
    case paused = 2
    /// The framework ended it with an error.
    case error = 3
    case starting = 4
    case pausing = 5
    case resuming = 6
    case stopping = 7
    case saving = 8
    case restoring = 9

    /// An unknown state counts as an error: no call is allowed on it.
    init(_ state: VZVirtualMachine.State) {
        self = MachineState(rawValue: Int32(state.rawValue)) ?? .error
    }
}

/// What happened to a machine.
public enum MachineEvent: Sendable, Equatable {
    /// It entered this state.
    case state(MachineState)
    /// The guest powered itself off.
    case guestStopped
    /// The framework ended it, for this reason.
    case stoppedWithError(VZFailure)
    /// A network device lost its network, with the framework's reason; the guest keeps running without it.
    case networkDisconnected(String)
    /// The guest connected to one of `MachineSpec.vsockListen`. The observer owns the descriptor and must close it.
    case guestConnected(port: UInt32, descriptor: Int32)
    /// Progress of an installation, 0…1.
    case progress(Double)
}

/// Receives a machine's events, on that machine's queue, in order. It must not block.
public protocol MachineObserver: Sendable {
    /// `event` happened to the machine made with this `id`. No event comes after `Machine.close()` has returned.
    func machine(_ id: UInt64, did event: MachineEvent)
}
