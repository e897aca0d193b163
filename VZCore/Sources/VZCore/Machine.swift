import Dispatch
import Foundation
import Virtualization

/// One VM, on a serial queue of its own (the main queue with a window), which is also this actor's executor.
///
/// ```text
///            ┌───────── restore ─────────▶ paused ◀─ pause ─┐    save keeps it paused
///            │                               └── resume ──▶ │
///  init ─▶ stopped ──────── start ────────────────────▶ running
///            ▲                                              │
///            └── stop, or the guest powers off ◀────────────┤
///                              error ◀── the framework ends it, with a reason
///  close or drop, in any state ─▶ nothing is left: no VM, descriptor, listener
/// ```
///
/// A call that does not fit the state fails with `invalidState`. A caller whose task is cancelled gets `cancelled` at
/// once and the framework finishes what it began, which the state tells. After `close` every call fails with
/// `noSuchMachine`.
public actor Machine {
    /// What the machine was given of what it asked for.
    public struct Effective: Sendable, Equatable {
        /// Virtual CPUs.
        public let cpus: Int
        /// Memory in bytes.
        public let memoryBytes: UInt64
        /// The network device's address; nil without one.
        public let macAddress: String?
    }

    /// As the observer is told.
    public nonisolated let id: UInt64
    /// As it was made.
    public nonisolated let spec: MachineSpec
    /// What it got.
    public nonisolated let effective: Effective
    /// Why this machine's state cannot be saved (`validateSaveRestoreSupport()`); nil = it can.
    public nonisolated let saveSupport: VZFailure?

    private let engine: Engine
    private nonisolated let executor: QueueExecutor

    public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    /// Builds and validates the configuration and makes the VM, on its queue. Nothing runs yet.
    ///
    /// With `display` "window" the main queue must run (`VMWindow.runMainLoop`), or this is called on it.
    /// - Throws: `badSpec`, `invalidConfiguration`, `diskImage`, `notSupported`, `network`, `io`.
    public init(id: UInt64, spec: MachineSpec, observer: any MachineObserver) throws(VZFailure) {
        try spec.check()
        let configured = try Configuration(spec)
        let queue = spec.display == .window ? DispatchQueue.main : DispatchQueue(label: "shoes-vz.vm.\(id)")
        self.id = id
        self.spec = spec
        effective = configured.effective
        saveSupport = configured.saveSupport
        executor = QueueExecutor(queue)
        let make = { Engine(configured, queue: queue) { observer.machine(id, did: $0) } }
        engine = spec.display == .window && MainQueue.isHere ? make() : queue.sync(execute: make)
    }

    deinit { engine.dropped() }

    /// Boots the guest; returns when it runs.
    /// - Throws: `invalidState`, `limitExceeded`, `diskImage`, `invalidConfiguration`, `cancelled`, `internalError`.
    public func start() async throws(VZFailure) { try await answer(engine.start).get() }

    /// Stops the guest's time; returns when it stands still.
    /// - Throws: `invalidState`, `cancelled`, `internalError`.
    public func pause() async throws(VZFailure) { try await answer(engine.pause).get() }

    /// Lets a paused guest go on.
    /// - Throws: `invalidState`, `cancelled`, `internalError`.
    public func resume() async throws(VZFailure) { try await answer(engine.resume).get() }

    /// Writes the paused guest's state to a new file, which appears whole or not at all (0600: it holds the guest's
    /// memory). Only this host can restore it, with the same configuration.
    /// - Throws: `invalidState` unless paused, `notSupported`, `exists`, `saveFailed`, `diskFull`, `cancelled`.
    public func save(to path: String) async throws(VZFailure) {
        try await answer { engine.save(to: path, $0) }.get()
    }

    /// Brings a stopped machine to where `save` was called, paused. On failure: close it, make another, `start` that.
    /// - Throws: `invalidState` unless stopped, `notSupported`, `restoreFailed`, `limitExceeded`, `cancelled`.
    public func restore(from path: String) async throws(VZFailure) {
        try await answer { engine.restore(from: path, $0) }.get()
    }

    /// Ends the guest now, without asking it. Waits for a change of state under way, if that is needed; a machine that
    /// is over already is fine.
    /// - Throws: `cancelled`, `internalError`.
    public func stop() async throws(VZFailure) { try await answer(engine.stop).get() }

    /// Presses the guest's power button. The guest may ignore it.
    /// - Throws: `invalidState`, `internalError`.
    public func requestStop() throws(VZFailure) { try engine.requestStop() }

    /// Connects to a vsock port the guest listens on.
    /// - Returns: a socket's descriptor (close-on-exec), the caller's to close.
    /// - Throws: `connectFailed` when nobody listens there, `invalidState` unless running, `cancelled`, `io`.
    public func connect(toPort port: UInt32) async throws(VZFailure) -> Int32 {
        try await answer { engine.connect(toPort: port, $0) }.get()
    }

    /// The present state; `stopped` once closed.
    public var state: MachineState { engine.state }

    /// Stops the guest if need be and lets go of everything. Calls under way are answered with `cancelled`. Idempotent;
    /// when it has returned no event comes any more.
    ///
    /// - Parameter grace: how long the framework has for finishing a change of state and stopping the guest; after that
    ///   the VM object is let go, which ends its guest as well.
    public func close(grace: Duration = .seconds(10)) async {
        await withCheckedContinuation { closed in engine.close(grace: grace) { closed.resume() } }
    }

    /// Installs macOS on the blank disk; see `Installer`. Cancelled, the installation is too.
    func install(restoreImage: URL, progress: @escaping @Sendable (Double) -> Void) async throws(VZFailure) {
        let result = await withTaskCancellationHandler {
            await answer { engine.install(restoreImage: restoreImage, progress: progress, $0) }
        } onCancel: {
            engine.cancelInstallation()
        }
        try result.get()
    }

    /// Gives `display` the VM, and nil when that is let go.
    func show(in display: @escaping (VZVirtualMachine?) -> Void) throws(VZFailure) {
        try engine.show(in: display)
    }

    /// Asks, and waits for the answer or for the asking task to be cancelled.
    private func answer<Value: Sendable>(_ ask: (Reply<Value>) -> Void) async -> Reply<Value>.Answer {
        let reply = Reply<Value>(
            ifGivenUp: VZFailure(
                code: .cancelled,
                message: "whoever asked the VM of \(spec.bundle) for something gave up waiting")
        )
        return await withTaskCancellationHandler {
            await wait(for: reply, ask)
        } onCancel: {
            reply.giveUp()
        }
    }

    /// A method, so that asking happens on this actor whatever runs the closure it is called in.
    private func wait<Value: Sendable>(
        for reply: Reply<Value>, _ ask: (Reply<Value>) -> Void
    ) async -> Reply<Value>.Answer {
        await reply.wait { ask(reply) }
    }
}
