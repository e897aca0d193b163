import Virtualization

/// A machine's state: `VZVirtualMachine.State` with its numbers (SDK 26.5).
public enum MachineState: Int32, CaseIterable, Sendable {
    /// Not started yet, or over.
    case stopped = 0
    /// The guest runs.
    case running = 1
    /// The guest's time stands still.
    case paused = 2
    /// The framework gave up on it.
    case error = 3
    /// On its way to running.
    case starting = 4
    /// On its way to paused.
    case pausing = 5
    /// On its way back to running.
    case resuming = 6
    /// On its way to stopped.
    case stopping = 7
    /// Its state is being written.
    case saving = 8
    /// Its state is being read.
    case restoring = 9

    /// A state this version does not know counts as an error: nothing may be asked of it.
    init(_ state: VZVirtualMachine.State) {
        self = MachineState(rawValue: Int32(state.rawValue)) ?? .error
    }
}

/// What happened to a machine.
public enum MachineEvent: Sendable, Equatable {
    /// It came into this state.
    case state(MachineState)
    /// The guest powered itself off.
    case guestStopped
    /// The framework ended it, for this reason.
    case stoppedWithError(VZFailure)
    /// A network device lost its network, in the framework's words; the guest runs on without.
    case networkDisconnected(String)
    /// The guest connected to one of `MachineSpec.vsockListen`. The descriptor is the observer's to close.
    case guestConnected(port: UInt32, descriptor: Int32)
    /// How far an installation is, 0…1.
    case progress(Double)
}

/// Told what happens to a machine, on that machine's queue, in order: hand it on and return.
public protocol MachineObserver: Sendable {
    /// `event` happened to the machine made with this `id`. No event comes after `Machine.close()` has returned.
    func machine(_ id: UInt64, did event: MachineEvent)
}
