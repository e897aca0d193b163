import Darwin
import Dispatch
import Foundation
import Virtualization

/// The VM, the calls on it, and its end. Confined to the VM's queue: everything runs there (`dropped` and
/// `cancelInstallation` may be called from any thread and dispatch to it), which is what makes it sendable.
///
/// It outlives a dropped `Machine` until the guest has ended; nothing else retains it.
final class Engine: @unchecked Sendable {
    /// A call that the framework has not completed yet.
    private struct PendingCall {
        let changesState: Bool
        /// Fails the caller's reply when the VM is released first.
        let abandon: () -> Void
    }

    private let queue: DispatchQueue
    private let spec: MachineSpec
    private let saveSupport: VZFailure?
    private let emit: (MachineEvent) -> Void
    private let alive = VZCoreLiveness.Token()

    private var vm: VZVirtualMachine?
    private var relay: Relay?
    private var resources: HostResources?
    private var installation: Installation?
    private var display: ((VZVirtualMachine?) -> Void)?

    private var reported = MachineState.stopped
    private var lastTicket: UInt64 = 0
    private var pending: [UInt64: PendingCall] = [:]
    private var pendingStops = 0
    private var afterStateChange: [() -> Void] = []
    private var closing: Closing?

    private struct Closing {
        let deadline: any DispatchSourceTimer
        var waiting: [() -> Void]
    }

    init(_ configured: Configuration, queue: DispatchQueue, emit: @escaping (MachineEvent) -> Void) {
        self.queue = queue
        self.emit = emit
        spec = configured.spec
        saveSupport = configured.saveSupport
        resources = configured.resources
        let vm = VZVirtualMachine(configuration: configured.vz, queue: queue)
        self.vm = vm
        let relay = Relay(engine: self)
        self.relay = relay
        vm.delegate = relay
        for port in spec.vsockListen { vm.socketDevice?.setSocketListener(relay.listener, forPort: port) }
    }

    var state: MachineState { vm.map { MachineState($0.state) } ?? .stopped }

    // MARK: - Calls

    func start(_ reply: Reply<Void>) {
        change("starting", reply, if: \.canStart, ask: { vm, done in vm.start(completionHandler: done) })
    }

    func pause(_ reply: Reply<Void>) {
        change("pausing", reply, if: \.canPause, ask: { vm, done in vm.pause(completionHandler: done) })
    }

    func resume(_ reply: Reply<Void>) {
        change("resuming", reply, if: \.canResume, ask: { vm, done in vm.resume(completionHandler: done) })
    }

    func save(to path: String, _ reply: Reply<Void>) {
        if let saveSupport { return reply.fail(saveSupport) }
        guard !FileManager.default.fileExists(atPath: path) else {
            return reply.fail(
                .exists, "\(doing("saving the state of")) to \(path): that file already exists")
        }
        let file = SaveFile(path)
        change(
            "saving the state of", reply, otherwise: .saveFailed, if: { $0.state == .paused },
            ask: { vm, done in
                file.discard()
                vm.saveMachineStateTo(url: file.partial) { done(Result($0)) }
            },
            wrapUp: file.finish, abandon: file.discard)
    }

    func restore(from path: String, _ reply: Reply<Void>) {
        if let saveSupport { return reply.fail(saveSupport) }
        change(
            "restoring the state of", reply, otherwise: .restoreFailed,
            if: { $0.state == .stopped && $0.canStart },
            ask: { vm, done in
                vm.restoreMachineStateFrom(url: URL(fileURLWithPath: path)) { done(Result($0)) }
            })
    }

    func stop(_ reply: Reply<Void>) {
        guard !reply.isSettled, present("stopping", reply) != nil else { return }
        if mayStop {
            pendingStops += 1
            change(
                "stopping", reply, if: \.canStop, ask: { vm, done in vm.stop { done(Result($0)) } },
                wrapUp: { [self] result in
                    pendingStops -= 1
                    // The guest may have ended by itself in the meantime: the stop has succeeded then.
                    return hasEnded ? .success(()) : result
                })
        } else if changesState || isInTransit {
            afterStateChange.append { [self] in stop(reply) }
        } else if hasEnded {
            reply.settle(.success(()))
        } else {
            reply.fail(.invalidState, "\(doing("stopping")): it is \(state)")
        }
    }

    func requestStop() throws(VZFailure) {
        let doing = doing("pressing the power button of")
        guard let vm else { throw closedFailure(doing) }
        guard vm.canRequestStop else {
            throw VZFailure(code: .invalidState, reason: "\(doing): it is \(state)")
        }
        do { try vm.requestStop() } catch { throw VZFailure(error, doing: doing) }
        report()
    }

    func connect(toPort port: UInt32, _ reply: Reply<Int32>) {
        let what = "connecting to port \(port) of"
        let doing = doing(what)
        guard let vm = present(what, reply) else { return }
        guard vm.state == .running, let device = vm.socketDevice else {
            reply.fail(.invalidState, "\(doing): it is \(state)")
            return
        }
        let ticket = takeTicket(changesState: false, abandon: reply.cancel)
        device.connect(toPort: port) { [self] result in
            dispatchPrecondition(condition: .onQueue(queue))
            pending[ticket] = nil
            switch result {
            case .success(let connection):
                let taken = connection.takeDescriptor(doing: doing)
                if !reply.settle(taken), case .success(let descriptor) = taken { Darwin.close(descriptor) }
            case .failure(let error):
                reply.fail(VZFailure(error, doing: doing, always: .connectFailed))
            }
        }
    }

    func install(restoreImage: URL, progress: @escaping @Sendable (Double) -> Void, _ reply: Reply<Void>) {
        change(
            "installing macOS on", reply, otherwise: .installFailed, if: { $0.state == .stopped },
            ask: { [self] vm, done in
                let installation = Installation(
                    vm, from: restoreImage, queue: queue, progress: progress, done: done)
                self.installation = installation
                installation.start()
            },
            wrapUp: { [self] result in
                installation = nil
                return result
            })
    }

    /// From any thread.
    func cancelInstallation() { queue.async { self.installation?.cancel() } }

    /// Passes the VM to `display` now, and nil when the VM is released.
    func show(in display: @escaping (VZVirtualMachine?) -> Void) throws(VZFailure) {
        guard let vm else { throw closedFailure(doing("showing the screen of")) }
        self.display?(nil)
        self.display = display
        display(vm)
    }

    // MARK: - Events of the framework

    func guestStopped() {
        dispatchPrecondition(condition: .onQueue(queue))
        if pendingStops == 0 { emit(.guestStopped) }
        installation?.machineEnded(.success(()))
        stateChanged()
    }

    func stopped(with error: any Error) {
        dispatchPrecondition(condition: .onQueue(queue))
        emit(.stoppedWithError(VZFailure(error, doing: doing("running"))))
        installation?.machineEnded(.failure(error))
        stateChanged()
    }

    func networkDisconnected(_ error: any Error) {
        dispatchPrecondition(condition: .onQueue(queue))
        emit(
            .networkDisconnected(
                VZFailure(error, doing: doing("connecting to the network"), always: .network).reason))
    }

    /// Returns whether the guest's connection was accepted.
    func guestConnected(_ connection: VZVirtioSocketConnection) -> Bool {
        dispatchPrecondition(condition: .onQueue(queue))
        let port = connection.destinationPort
        // After a refusal the guest sees a reset; without an available descriptor the host can do no more.
        guard closing == nil,
            case .success(let descriptor) = connection.takeDescriptor(
                doing: doing("accepting a connection from"))
        else { return false }
        emit(.guestConnected(port: port, descriptor: descriptor))
        return true
    }

    // MARK: - The end

    /// See `Machine.close`.
    func close(grace: Duration, then closed: @escaping () -> Void) {
        guard vm != nil else { return closed() }
        guard closing == nil else {
            closing?.waiting.append(closed)
            return
        }
        let deadline = DispatchSource.makeTimerSource(queue: queue)
        deadline.schedule(deadline: .now() + .milliseconds(grace.milliseconds))
        deadline.setEventHandler { [weak self] in self?.release() }
        closing = Closing(deadline: deadline, waiting: [closed])
        deadline.activate()
        installation?.cancel()
        continueClosing()
    }

    /// The last reference to the `Machine` was dropped. From any thread.
    func dropped() { queue.async { self.close(grace: .seconds(10), then: {}) } }

    /// While closing: stops the guest as soon as its state allows, then releases the VM.
    private func continueClosing() {
        guard closing != nil, let vm else { return }
        if mayStop {
            pendingStops += 1
            vm.stop { [self] error in
                dispatchPrecondition(condition: .onQueue(queue))
                pendingStops -= 1
                report()
                // A guest that cannot be stopped ends when its VM is released.
                if error == nil || hasEnded { continueClosing() } else { release() }
            }
            report()
        } else if pendingStops == 0, !changesState, !isInTransit {
            release()
        }
    }

    private func release() {
        guard let closing else { return }
        closing.deadline.cancel()
        for port in spec.vsockListen { vm?.socketDevice?.removeSocketListener(forPort: port) }
        vm?.delegate = nil
        display?(nil)
        display = nil
        installation = nil
        relay = nil
        vm = nil
        // Last, because the VM uses them.
        resources = nil
        report()
        let abandoned = pending.values
        pending = [:]
        for call in abandoned { call.abandon() }
        self.closing = nil
        runWaiting()
        for closed in closing.waiting { closed() }
    }

    // MARK: - Bookkeeping

    /// Requests a state change from the framework, and settles `reply` when it has completed.
    private func change(
        _ what: String, _ reply: Reply<Void>, otherwise code: FailureCode = .internalError,
        if possible: (VZVirtualMachine) -> Bool,
        ask: (VZVirtualMachine, @escaping (Result<Void, any Error>) -> Void) -> Void,
        wrapUp: @escaping (Reply<Void>.Answer) -> Reply<Void>.Answer = { $0 },
        abandon: @escaping () -> Void = {}
    ) {
        let doing = doing(what)
        guard let vm = present(what, reply) else { return }
        guard possible(vm) else { return reply.fail(.invalidState, "\(doing): it is \(state)") }
        let ticket = takeTicket(changesState: true) {
            abandon()
            reply.cancel()
        }
        ask(vm) { [self] result in
            dispatchPrecondition(condition: .onQueue(queue))
            // The VM was released before it answered.
            guard pending.removeValue(forKey: ticket) != nil else { return abandon() }
            let answer = wrapUp(result.mapError { VZFailure($0, doing: doing, otherwise: code) })
            if case .failure = answer, hasEnded {
                // The VM ended in between. The delegate gets the reason next; emit it before the state.
                queue.async { self.report() }
            } else {
                report()
            }
            reply.settle(answer)
            proceed()
        }
        report()
    }

    private func takeTicket(changesState: Bool, abandon: @escaping () -> Void) -> UInt64 {
        lastTicket += 1
        pending[lastTicket] = PendingCall(changesState: changesState, abandon: abandon)
        return lastTicket
    }

    private func stateChanged() {
        report()
        proceed()
    }

    /// Runs what waited for the state change.
    private func proceed() {
        if !changesState { runWaiting() }
        continueClosing()
    }

    private func runWaiting() {
        let waiting = afterStateChange
        afterStateChange = []
        for resume in waiting { resume() }
    }

    private func report() {
        let now = state
        guard now != reported else { return }
        reported = now
        emit(.state(now))
    }

    private var changesState: Bool { pending.values.contains(where: \.changesState) }

    private var hasEnded: Bool { vm?.hasEnded ?? true }

    private var mayStop: Bool { vm?.canStop == true && pendingStops == 0 && installation == nil }

    /// Whether the state is changing, requested here or not (a VM stops by itself after an installation of macOS).
    private var isInTransit: Bool {
        switch state {
        case .starting, .pausing, .resuming, .stopping, .saving, .restoring: true
        case .stopped, .running, .paused, .error: false
        }
    }

    private func doing(_ what: String) -> String { "\(what) the VM of \(spec.bundle)" }

    private func closedFailure(_ doing: String) -> VZFailure {
        VZFailure(code: .noSuchMachine, reason: "\(doing): the machine is closed")
    }

    /// Returns the VM, unless it is closed or closing.
    private func present<Value>(_ what: String, _ reply: Reply<Value>) -> VZVirtualMachine? {
        if let vm, closing == nil { return vm }
        reply.fail(closedFailure(doing(what)))
        return nil
    }
}
