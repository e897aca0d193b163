import Dispatch
import Foundation
import Virtualization

/// One VM, on its serial queue (the main queue with a window), which is also this actor's executor.
///
/// ```text
///            ┌───────── restore ─────────▶ paused ◀─ pause ─┐    save keeps it paused
///            │                               └── resume ──▶ │
///  init ─▶ stopped ──────── start ────────────────────▶ running
///            ▲                                              │
///            └── stop, or the guest powers off ◀────────────┤
///                              error ◀── the framework ends it, with a reason
///  close or drop, in any state ─▶ VM, descriptors and listeners are released
/// ```
///
/// A call that the state does not allow fails with `invalidState`. A caller whose task is cancelled gets `cancelled` at
/// once, while the framework completes the call and the state changes accordingly. After `close` every call fails with
/// `noSuchMachine`.
public actor Machine {
    /// The resources of the machine, after the host's limits were applied.
    public struct Effective: Sendable, Equatable {
        public let cpus: Int
        public let memoryBytes: UInt64
        /// The network device's address; nil without one.
        public let macAddress: String?
    }

    /// Passed to the observer.
    public nonisolated let id: UInt64
    public nonisolated let spec: MachineSpec
    public nonisolated let effective: Effective
    /// The reason why this machine's state cannot be saved (`validateSaveRestoreSupport()`); nil = it can be saved.
    public nonisolated let saveSupport: VZFailure?

    private let engine: Engine
    private nonisolated let executor: QueueExecutor

    public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    /// Builds and validates the configuration and creates the VM, on its queue, without starting it.
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

    /// Boots the guest; returns when it is running.
    /// - Throws: `invalidState`, `limitExceeded`, `diskImage`, `invalidConfiguration`, `cancelled`, `internalError`.
    public func start() async throws(VZFailure) { try await answer(engine.start).get() }

    /// Pauses the guest; returns when it is paused.
    /// - Throws: `invalidState`, `cancelled`, `internalError`.
    public func pause() async throws(VZFailure) { try await answer(engine.pause).get() }

    /// Resumes a paused guest.
    /// - Throws: `invalidState`, `cancelled`, `internalError`.
    public func resume() async throws(VZFailure) { try await answer(engine.resume).get() }

    /// Writes the paused guest's state to a new file, atomically (0600: it holds the guest's
    /// memory). Only this host can restore it, with the same configuration.
    /// - Throws: `invalidState` unless paused, `notSupported`, `exists`, `saveFailed`, `diskFull`, `cancelled`.
    public func save(to path: String) async throws(VZFailure) {
        try await answer { engine.save(to: path, $0) }.get()
    }

    /// Restores a stopped machine to the saved state, paused. After a failure: close it and `start` a new one.
    /// - Throws: `invalidState` unless stopped, `notSupported`, `restoreFailed`, `limitExceeded`, `cancelled`.
    public func restore(from path: String) async throws(VZFailure) {
        try await answer { engine.restore(from: path, $0) }.get()
    }

    /// Ends the guest without asking it. Waits for a pending state change if necessary; succeeds on a machine that has
    /// already ended.
    /// - Throws: `cancelled`, `internalError`.
    public func stop() async throws(VZFailure) { try await answer(engine.stop).get() }

    /// Presses the guest's power button. The guest may ignore it.
    /// - Throws: `invalidState`, `internalError`.
    public func requestStop() throws(VZFailure) { try engine.requestStop() }

    /// Connects to a vsock port on which the guest listens.
    /// - Returns: a socket's descriptor (close-on-exec), which the caller owns.
    /// - Throws: `connectFailed` when nothing listens there, `invalidState` unless running, `cancelled`, `io`.
    public func connect(toPort port: UInt32) async throws(VZFailure) -> Int32 {
        try await answer { engine.connect(toPort: port, $0) }.get()
    }

    /// The current state; `stopped` once closed.
    public var state: MachineState { engine.state }

    /// Stops the guest if necessary and releases everything. Pending calls fail with `cancelled`. Idempotent; no event
    /// comes after it has returned.
    ///
    /// - Parameter grace: how long the framework may take to complete a state change and stop the guest; after that
    ///   the VM object is released, which ends its guest as well.
    public func close(grace: Duration = .seconds(10)) async {
        await withCheckedContinuation { closed in engine.close(grace: grace) { closed.resume() } }
    }

    /// Installs macOS on the blank disk; see `Installer`. Cancelling the task cancels the installation.
    func install(restoreImage: URL, progress: @escaping @Sendable (Double) -> Void) async throws(VZFailure) {
        let result = await withTaskCancellationHandler {
            await answer { engine.install(restoreImage: restoreImage, progress: progress, $0) }
        } onCancel: {
            engine.cancelInstallation()
        }
        try result.get()
    }

    /// Passes the VM to `display`, and nil when the VM is released.
    func show(in display: @escaping (VZVirtualMachine?) -> Void) throws(VZFailure) {
        try engine.show(in: display)
    }

    /// Makes a call, and waits for its answer or for the calling task to be cancelled.
    private func answer<Value: Sendable>(_ ask: (Reply<Value>) -> Void) async -> Reply<Value>.Answer {
        let reply = Reply<Value>(
            ifCancelled: VZFailure(
                code: .cancelled,
                reason: "calling the VM of \(spec.bundle): the caller cancelled the call")
        )
        return await withTaskCancellationHandler {
            await wait(for: reply, ask)
        } onCancel: {
            reply.cancel()
        }
    }

    /// A method, so that the call is made on this actor, whatever runs the calling closure.
    private func wait<Value: Sendable>(
        for reply: Reply<Value>, _ ask: (Reply<Value>) -> Void
    ) async -> Reply<Value>.Answer {
        await reply.wait { ask(reply) }
    }
}
