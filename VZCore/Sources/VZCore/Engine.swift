import Darwin
import Dispatch
import Foundation
import Virtualization

/// The VM, what is asked of it, and its end. Confined to the VM's queue: everything here runs there (only `dropped` and
/// `cancelInstallation` come from elsewhere and go there), which is what makes it sendable.
///
/// It outlives a dropped `Machine` until the guest is gone, and nothing else holds it.
final class Engine: @unchecked Sendable {
    /// Something the framework has not answered yet.
    private struct UnderWay {
        let changesState: Bool
        /// Answers whoever waits, when the VM is let go first.
        let abandon: () -> Void
    }

    private let queue: DispatchQueue
    private let spec: MachineSpec
    private let saveSupport: VZFailure?
    private let tell: (MachineEvent) -> Void
    private let alive = VZCoreLiveness.Token()

    private var vm: VZVirtualMachine?
    private var relay: Relay?
    private var held: Held?
    private var installation: Installation?
    private var display: ((VZVirtualMachine?) -> Void)?

    private var told = MachineState.stopped
    private var tickets: UInt64 = 0
    private var underWay: [UInt64: UnderWay] = [:]
    private var stopsUnderWay = 0
    private var onceSettled: [() -> Void] = []
    private var closing: Closing?

    private struct Closing {
        let deadline: any DispatchSourceTimer
        var waiting: [() -> Void]
    }

    init(_ configured: Configuration, queue: DispatchQueue, tell: @escaping (MachineEvent) -> Void) {
        self.queue = queue
        self.tell = tell
        spec = configured.spec
        saveSupport = configured.saveSupport
        held = configured.held
        let vm = VZVirtualMachine(configuration: configured.vz, queue: queue)
        self.vm = vm
        let relay = Relay(engine: self)
        self.relay = relay
        vm.delegate = relay
        for port in spec.vsockListen { vm.socketDevice?.setSocketListener(relay.listener, forPort: port) }
    }

    var state: MachineState { vm.map { MachineState($0.state) } ?? .stopped }

    // MARK: - What callers ask

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
                .exists, "\(doing("saving the state of")) to \(path): that file is there already")
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
            stopsUnderWay += 1
            change(
                "stopping", reply, if: \.canStop, ask: { vm, done in vm.stop { done(Result($0)) } },
                wrapUp: { [self] result in
                    stopsUnderWay -= 1
                    // The guest may have ended by itself meanwhile: what was asked for is so.
                    return isOver ? .success(()) : result
                })
        } else if changesState || isInTransit {
            onceSettled.append { [self] in stop(reply) }
        } else if isOver {
            reply.settle(.success(()))
        } else {
            reply.fail(.invalidState, "\(doing("stopping")): it is \(state)")
        }
    }

    func requestStop() throws(VZFailure) {
        let doing = doing("pressing the power button of")
        guard let vm else { throw gone(doing) }
        guard vm.canRequestStop else {
            throw VZFailure(code: .invalidState, message: "\(doing): it is \(state)")
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
        let ticket = takeTicket(changesState: false, abandon: reply.giveUp)
        device.connect(toPort: port) { [self] result in
            dispatchPrecondition(condition: .onQueue(queue))
            underWay[ticket] = nil
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

    /// Gives `display` the VM now and nil when it is let go.
    func show(in display: @escaping (VZVirtualMachine?) -> Void) throws(VZFailure) {
        guard let vm else { throw gone(doing("showing the screen of")) }
        self.display?(nil)
        self.display = display
        display(vm)
    }

    // MARK: - What the framework says

    func guestStopped() {
        dispatchPrecondition(condition: .onQueue(queue))
        if stopsUnderWay == 0 { tell(.guestStopped) }
        installation?.machineEnded(.success(()))
        stateChanged()
    }

    func stopped(with error: any Error) {
        dispatchPrecondition(condition: .onQueue(queue))
        tell(.stoppedWithError(VZFailure(error, doing: doing("running"))))
        installation?.machineEnded(.failure(error))
        stateChanged()
    }

    func networkDisconnected(_ error: any Error) {
        dispatchPrecondition(condition: .onQueue(queue))
        tell(
            .networkDisconnected(
                VZFailure(error, doing: doing("connecting to the network"), always: .network).message))
    }

    /// Whether the guest's connection was taken.
    func guestConnected(_ connection: VZVirtioSocketConnection) -> Bool {
        dispatchPrecondition(condition: .onQueue(queue))
        let port = connection.destinationPort
        // Refused, the guest sees a reset: that is all this host can say without a descriptor left.
        guard closing == nil,
            case .success(let descriptor) = connection.takeDescriptor(
                doing: doing("taking a connection from"))
        else { return false }
        tell(.guestConnected(port: port, descriptor: descriptor))
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
        deadline.setEventHandler { [weak self] in self?.letGo() }
        closing = Closing(deadline: deadline, waiting: [closed])
        deadline.activate()
        installation?.cancel()
        windUp()
    }

    /// Nobody holds the `Machine` any more. From any thread.
    func dropped() { queue.async { self.close(grace: .seconds(10), then: {}) } }

    /// While closing: stops the guest as soon as that can be, then lets go.
    private func windUp() {
        guard closing != nil, let vm else { return }
        if mayStop {
            stopsUnderWay += 1
            vm.stop { [self] error in
                dispatchPrecondition(condition: .onQueue(queue))
                stopsUnderWay -= 1
                report()
                // A guest that cannot be stopped ends with its VM.
                if error == nil || isOver { windUp() } else { letGo() }
            }
            report()
        } else if stopsUnderWay == 0, !changesState, !isInTransit {
            letGo()
        }
    }

    private func letGo() {
        guard let closing else { return }
        closing.deadline.cancel()
        for port in spec.vsockListen { vm?.socketDevice?.removeSocketListener(forPort: port) }
        vm?.delegate = nil
        display?(nil)
        display = nil
        installation = nil
        relay = nil
        vm = nil
        // After the VM, which uses these.
        held = nil
        report()
        let abandoned = underWay.values
        underWay = [:]
        for call in abandoned { call.abandon() }
        self.closing = nil
        settled()
        for closed in closing.waiting { closed() }
    }

    // MARK: - Bookkeeping

    /// Asks the framework for a change of state, and settles `reply` when it has answered.
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
            reply.giveUp()
        }
        ask(vm) { [self] result in
            dispatchPrecondition(condition: .onQueue(queue))
            // The VM was let go before it answered.
            guard underWay.removeValue(forKey: ticket) != nil else { return abandon() }
            let answer = wrapUp(result.mapError { VZFailure($0, doing: doing, otherwise: code) })
            if case .failure = answer, isOver {
                // The end came in between; its reason, which the delegate hears next, is told before it.
                queue.async { self.report() }
            } else {
                report()
            }
            reply.settle(answer)
            goOn()
        }
        report()
    }

    private func takeTicket(changesState: Bool, abandon: @escaping () -> Void) -> UInt64 {
        tickets += 1
        underWay[tickets] = UnderWay(changesState: changesState, abandon: abandon)
        return tickets
    }

    private func stateChanged() {
        report()
        goOn()
    }

    /// Whoever waited for the change of state has their turn.
    private func goOn() {
        if !changesState { settled() }
        windUp()
    }

    private func settled() {
        let waiting = onceSettled
        onceSettled = []
        for go in waiting { go() }
    }

    private func report() {
        let now = state
        guard now != told else { return }
        told = now
        tell(.state(now))
    }

    private var changesState: Bool { underWay.values.contains(where: \.changesState) }

    private var isOver: Bool { vm?.isOver ?? true }

    private var mayStop: Bool { vm?.canStop == true && stopsUnderWay == 0 && installation == nil }

    /// The state changes, asked for here or not (a VM stops by itself once macOS is installed on it).
    private var isInTransit: Bool {
        switch state {
        case .starting, .pausing, .resuming, .stopping, .saving, .restoring: true
        case .stopped, .running, .paused, .error: false
        }
    }

    private func doing(_ what: String) -> String { "\(what) the VM of \(spec.bundle)" }

    private func gone(_ doing: String) -> VZFailure {
        VZFailure(code: .noSuchMachine, message: "\(doing): the machine is closed")
    }

    /// The VM, unless it is closed or closing.
    private func present<Value>(_ what: String, _ reply: Reply<Value>) -> VZVirtualMachine? {
        if let vm, closing == nil { return vm }
        reply.fail(gone(doing(what)))
        return nil
    }
}
