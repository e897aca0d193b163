import Dispatch
@_exported import Foundation

/// A virtual machine. Everything but `queue` is used on its queue, and everything it calls is called there.
// objc: VZVirtualMachine 11.0
open class VZVirtualMachine: NSObject {
    /// What the machine does. The numbers are the SDK's.
    // objc: VZVirtualMachineState 11.0
    public enum State: Int, Sendable {
        // objc: VZVirtualMachineState VZVirtualMachineStateStopped=0 11.0
        case stopped = 0
        // objc: VZVirtualMachineState VZVirtualMachineStateRunning=1 11.0
        case running = 1
        // objc: VZVirtualMachineState VZVirtualMachineStatePaused=2 11.0
        case paused = 2
        // objc: VZVirtualMachineState VZVirtualMachineStateError=3 11.0
        case error = 3
        // objc: VZVirtualMachineState VZVirtualMachineStateStarting=4 11.0
        case starting = 4
        // objc: VZVirtualMachineState VZVirtualMachineStatePausing=5 11.0
        case pausing = 5
        // objc: VZVirtualMachineState VZVirtualMachineStateResuming=6 11.0
        case resuming = 6
        // objc: VZVirtualMachineState VZVirtualMachineStateStopping=7 12.0
        case stopping = 7
        // objc: VZVirtualMachineState VZVirtualMachineStateSaving=8 14.0
        case saving = 8
        // objc: VZVirtualMachineState VZVirtualMachineStateRestoring=9 14.0
        case restoring = 9
    }

    /// The queue it was made with. May be read anywhere.
    // objc: VZVirtualMachine queue 26.0
    public let queue: DispatchQueue
    private let affinity: QueueAffinity
    private let core: MachineCore
    private weak var observer: (any VZVirtualMachineDelegate)?

    /// A machine on the main queue.
    // objc: VZVirtualMachine initWithConfiguration: 11.0
    public convenience init(configuration: VZVirtualMachineConfiguration) {
        self.init(configuration: configuration, queue: .main)
    }

    /// A machine on a serial queue, of a copy of the configuration, which must be valid.
    // objc: VZVirtualMachine initWithConfiguration:queue: 11.0
    public init(configuration: VZVirtualMachineConfiguration, queue: DispatchQueue) {
        do {
            try configuration.validate()
        } catch {
            Violations.report("a machine was made of an invalid configuration: \(error.localizedDescription)")
        }
        self.queue = queue
        affinity = QueueAffinity(queue)
        core = MachineCore(configuration, affinity: affinity)
        super.init()
        core.owner = self
    }

    /// Whether this host can run virtual machines.
    // objc: VZVirtualMachine +isSupported 11.0
    open class var isSupported: Bool { true }

    // objc: VZVirtualMachine delegate 11.0
    open weak var delegate: (any VZVirtualMachineDelegate)? {
        get {
            affinity.check("VZVirtualMachine.delegate")
            return observer
        }
        set {
            affinity.check("VZVirtualMachine.delegate")
            observer = newValue
        }
    }
    // objc: VZVirtualMachine state 11.0
    open var state: State {
        affinity.check("VZVirtualMachine.state")
        return core.state
    }
    /// In `.stopped` and `.error`.
    // objc: VZVirtualMachine canStart 11.0
    open var canStart: Bool { state == .stopped || state == .error }
    /// In `.running` and `.paused`.
    // objc: VZVirtualMachine canStop 12.0
    open var canStop: Bool { state == .running || state == .paused }
    /// In `.running`.
    // objc: VZVirtualMachine canPause 11.0
    open var canPause: Bool { state == .running }
    /// In `.paused`.
    // objc: VZVirtualMachine canResume 11.0
    open var canResume: Bool { state == .paused }
    /// In `.running`.
    // objc: VZVirtualMachine canRequestStop 11.0
    open var canRequestStop: Bool { state == .running }

    // objc: VZVirtualMachine networkDevices 12.0
    open var networkDevices: [VZNetworkDevice] {
        affinity.check("VZVirtualMachine.networkDevices")
        return core.networks
    }
    // objc: VZVirtualMachine socketDevices 11.0
    open var socketDevices: [VZSocketDevice] {
        affinity.check("VZVirtualMachine.socketDevices")
        return core.sockets
    }
    // objc: VZVirtualMachine memoryBalloonDevices 11.0
    open var memoryBalloonDevices: [VZMemoryBalloonDevice] {
        affinity.check("VZVirtualMachine.memoryBalloonDevices")
        return core.balloons
    }

    /// From `.stopped` or `.error` through `.starting` to `.running`. Ends with
    /// `VZError.invalidVirtualMachineStateTransition` in another state, `.virtualMachineLimitExceeded` for a
    /// third Mac, `.invalidVirtualMachineConfiguration` when another machine uses a file of this one.
    // objc: VZVirtualMachine startWithCompletionHandler: 11.0
    open func start(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        affinity.check("VZVirtualMachine.start(completionHandler:)")
        core.start(recovery: false, Self.asResult(completionHandler))
    }
    /// The same with options.
    // objc: VZVirtualMachine startWithOptions:completionHandler: 13.0
    open func start(
        options: VZVirtualMachineStartOptions, completionHandler: @escaping ((any Error)?) -> Void
    ) {
        affinity.check("VZVirtualMachine.start(options:completionHandler:)")
        let recovery = (options as? VZMacOSVirtualMachineStartOptions)?.startUpFromMacOSRecovery ?? false
        core.start(recovery: recovery, completionHandler)
    }
    /// Ends the guest without asking it: from `.running` or `.paused` through `.stopping` to `.stopped`.
    // objc: VZVirtualMachine stopWithCompletionHandler: 12.0
    open func stop(completionHandler: @escaping ((any Error)?) -> Void) {
        affinity.check("VZVirtualMachine.stop(completionHandler:)")
        core.stop(completionHandler)
    }
    /// From `.running` through `.pausing` to `.paused`.
    // objc: VZVirtualMachine pauseWithCompletionHandler: 11.0
    open func pause(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        affinity.check("VZVirtualMachine.pause(completionHandler:)")
        core.pause(Self.asResult(completionHandler))
    }
    /// From `.paused` through `.resuming` to `.running`.
    // objc: VZVirtualMachine resumeWithCompletionHandler: 11.0
    open func resume(completionHandler: @escaping (Result<Void, any Error>) -> Void) {
        affinity.check("VZVirtualMachine.resume(completionHandler:)")
        core.resume(Self.asResult(completionHandler))
    }
    /// Saves the state of a paused machine, which stays paused. Ends with
    /// `VZError.invalidVirtualMachineState` in another state, else with `.save`.
    // objc: VZVirtualMachine saveMachineStateToURL:completionHandler: 14.0
    open func saveMachineStateTo(
        url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void
    ) {
        affinity.check("VZVirtualMachine.saveMachineStateTo(url:completionHandler:)")
        core.save(to: saveFileURL, completionHandler)
    }
    /// Restores a saved state: from `.stopped` through `.restoring` to `.paused`. Ends with
    /// `VZError.invalidVirtualMachineState` in another state, with `.restore` when the file is not whole,
    /// from another host or of another configuration, or as a start does.
    // objc: VZVirtualMachine restoreMachineStateFromURL:completionHandler: 14.0
    open func restoreMachineStateFrom(
        url saveFileURL: URL, completionHandler: @escaping ((any Error)?) -> Void
    ) {
        affinity.check("VZVirtualMachine.restoreMachineStateFrom(url:completionHandler:)")
        core.restore(from: saveFileURL, completionHandler)
    }
    /// Presses the guest's power button. Throws `VZError.invalidVirtualMachineState` unless it is `.running`.
    // objc: VZVirtualMachine requestStopWithError: 11.0
    open func requestStop() throws {
        affinity.check("VZVirtualMachine.requestStop()")
        try core.requestStop()
    }

    /// What the machine does wrong; nil: what its files say.
    // spi: tests make a machine fail without a file
    @_spi(StandIn) public var faults: Faults? {
        get {
            affinity.check("VZVirtualMachine.faults")
            return core.faults
        }
        set {
            affinity.check("VZVirtualMachine.faults")
            core.faults = newValue
        }
    }

    var installing: MachineCore { core }

    func checkQueue(_ what: String) -> Bool { affinity.check(what) }

    private static func asResult(
        _ handler: @escaping (Result<Void, any Error>) -> Void
    ) -> MachineCore.Answer {
        { error in handler(error.map { .failure($0) } ?? .success(())) }
    }
}
