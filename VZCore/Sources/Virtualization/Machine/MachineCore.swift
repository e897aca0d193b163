import Dispatch
import Foundation

/// A machine's state and what moves it. Confined to the machine's queue, which is what makes it sendable.
///
/// ```
///            start              pause             save
///  stopped ─▶ starting ─▶ running ─▶ pausing ─▶ paused ─▶ saving ─▶ paused
///     │                     ▲  └────── resuming ◀──┘ ▲
///     └──── restoring ──────┼────────────────────────┘          any: the guest powers off ─▶ stopped
///  stopped ◀── stopping ◀───┴─ running, paused                       the guest crashes    ─▶ error ─▶ starting
/// ```
/// A transition that fails leads back to where it began; a start whose guest cannot be run leads to error.
final class MachineCore: @unchecked Sendable {
    typealias State = VZVirtualMachine.State
    typealias Answer = ((any Error)?) -> Void

    let plan: MachinePlan
    let queue: DispatchQueue
    weak var owner: VZVirtualMachine?
    /// Instead of those in the machine's files.
    var faults: Faults?
    private let serialPort: VZFileHandleSerialPortAttachment?
    private let saveRefusal: (any Error)?

    private(set) var state = State.stopped
    /// Whom the transition under way answers, and its number: what comes for an earlier one is late.
    private var answer: Answer?
    private var transition: UInt64 = 0
    private var guest: Guest?
    /// How a guest that a fault ends is reported to have ended.
    private var arrangedEnd: ArrangedEnd?
    private var isInstalling = false
    private var timersSet = false

    let sockets: [VZVirtioSocketDevice]
    let networks: [VZNetworkDevice]
    let balloons: [VZVirtioTraditionalMemoryBalloonDevice]

    private enum ArrangedEnd {
        case powerOff
        case error(VZError)
    }

    init(_ configuration: VZVirtualMachineConfiguration, affinity: QueueAffinity) {
        queue = affinity.queue
        sockets = configuration.socketDevices.map { _ in VZVirtioSocketDevice(affinity: affinity) }
        networks = configuration.networkDevices.map {
            VZNetworkDevice(affinity: affinity, attachment: $0.attachment)
        }
        balloons = configuration.memoryBalloonDevices.map { _ in
            VZVirtioTraditionalMemoryBalloonDevice(affinity: affinity, memory: configuration.memorySize)
        }
        plan = MachinePlan(configuration)
        serialPort =
            configuration.serialPorts.lazy.compactMap { $0.attachment as? VZFileHandleSerialPortAttachment }
            .first
        do {
            try configuration.validateSaveRestoreSupport()
            saveRefusal = nil
        } catch {
            saveRefusal = error
        }
        StandIn.machines.increment()
        for device in sockets { device.core = self }
    }

    deinit {
        guest?.end()
        StandIn.machines.decrement()
    }

    // MARK: - What the machine is asked

    func start(recovery: Bool, _ answer: @escaping Answer) {
        guard state == .stopped || state == .error else { return refuse(.starting, answer) }
        begin(.start, .starting, answer) { core, faults in
            core.after(faults.startDelay) { $0.boot(restored: false, recovery: recovery, faults) }
        }
    }

    func stop(_ answer: @escaping Answer) {
        if isInstalling {
            Violations.report("a virtual machine was stopped while macOS is being installed on it")
        }
        guard state == .running || state == .paused else { return refuse(.stopping, answer) }
        begin(.stop, .stopping, answer) { core, _ in core.guest?.end() }
    }

    func pause(_ answer: @escaping Answer) {
        if isInstalling {
            Violations.report("a virtual machine was paused while macOS is being installed on it")
        }
        guard state == .running else { return refuse(.pausing, answer) }
        begin(.pause, .pausing, answer) { core, _ in core.guest?.pause() }
    }

    func resume(_ answer: @escaping Answer) {
        guard state == .paused else { return refuse(.resuming, answer) }
        begin(.resume, .resuming, answer) { core, _ in core.guest?.resume() }
    }

    func save(to url: URL, _ answer: @escaping Answer) {
        guard state == .paused else { return refuse(for: "saving", answer) }
        begin(.save, .saving, answer) { core, _ in
            if let refusal = core.saveRefusal {
                return core.settle(.paused, VZError(saving: "It cannot be saved.", underlying: refusal))
            }
            let (file, number) = (
                SaveFile(host: SaveFile.thisHost(), fingerprint: core.plan.fingerprint), core.transition
            )
            FileWork.queue.async { [weak core] in
                let failure = VZError.saving(file, to: url)
                core?.later { $0.settle(.paused, failure, of: number) }
            }
        }
    }

    func restore(from url: URL, _ answer: @escaping Answer) {
        guard state == .stopped else { return refuse(for: "restoring", answer) }
        begin(.restore, .restoring, answer) { core, faults in
            let (fingerprint, number) = (core.plan.fingerprint, core.transition)
            FileWork.queue.async { [weak core] in
                let failure = VZError.restoring(url, fingerprint)
                core?.later { core in
                    guard core.transition == number else { return }
                    if let failure { return core.settle(.stopped, failure) }
                    core.boot(restored: true, recovery: false, faults)
                }
            }
        }
    }

    func requestStop() throws {
        guard state == .running else { throw VZError(state, invalidFor: "requesting a stop") }
        if !currentFaults.ignoreRequestStop { guest?.requestStop() }
    }

    var currentFaults: Faults {
        faults ?? plan.faultFiles.lazy.compactMap { StandInFile($0)?.faults }.first ?? Faults()
    }

    // MARK: - Installing

    /// Lets the machine run without a program. Throws what the installation ends with.
    func beginInstalling(_ image: RestoreImageFile) throws {
        guard state == .stopped else { throw VZError(from: state, to: .starting) }
        guard let model = plan.hardwareModel else {
            throw VZError.configuration("macOS is installed on Macs only.")
        }
        guard model == image.hardware?.model else {
            throw VZError(
                .installationFailed, failure: "An error occurred during installation.",
                reason: "The restore image does not support the virtual machine's hardware model.")
        }
        let lease = try Lease.take(plan, limitGroup: currentFaults.limitGroup)
        try launch(nil, lease, environment: [:], startsPaused: false)
        isInstalling = true
        state = .running
    }

    /// The machine may be stopped again.
    func installed() { isInstalling = false }

    /// The machine powers itself off; until then it runs.
    func powerOff() { guest?.powerOff() }

    // MARK: - Transitions

    /// Goes into a state and, unless a fault stops it, does what leads out of it. Everything after the change
    /// of state happens later: no answer comes before the call has returned.
    private func begin(
        _ operation: Faults.Operation, _ entered: State, _ answer: @escaping Answer,
        _ act: @escaping (MachineCore, Faults) -> Void
    ) {
        let (origin, faults) = (state, currentFaults)
        transition += 1
        state = entered
        self.answer = answer
        if faults.hang.contains(operation) { return }
        let number = transition
        let transfer = Transfer(value: act)
        later { core in
            guard core.transition == number, core.state == entered else { return }
            if let code = faults.fail[operation] {
                return core.settle(origin, VZError(askedFor: code, of: operation.rawValue))
            }
            transfer.value(core, faults)
        }
    }

    /// Ends the transition under way.
    private func settle(_ next: State, _ failure: (any Error)?) {
        state = next
        let answer = self.answer
        self.answer = nil
        answer?(failure)
    }

    private func settle(_ next: State, _ failure: (any Error)?, of number: UInt64) {
        if transition == number, answer != nil { settle(next, failure) }
    }

    private func refuse(_ next: State, _ answer: @escaping Answer) {
        reply(VZError(from: state, to: next), answer)
    }

    private func refuse(for what: String, _ answer: @escaping Answer) {
        reply(VZError(state, invalidFor: what), answer)
    }

    private func reply(_ error: VZError, _ answer: @escaping Answer) {
        let transfer = Transfer(value: answer)
        queue.async { transfer.value(error) }
    }

    func later(_ act: @escaping @Sendable (MachineCore) -> Void) {
        queue.async { [weak self] in
            if let self { act(self) }
        }
    }

    private func after(_ milliseconds: Int, _ act: @escaping @Sendable (MachineCore) -> Void) {
        guard milliseconds > 0 else { return act(self) }
        let number = transition
        queue.asyncAfter(deadline: .now() + .milliseconds(milliseconds)) { [weak self] in
            if let self, self.transition == number { act(self) }
        }
    }

    // MARK: - The guest

    private func boot(restored: Bool, recovery: Bool, _ faults: Faults) {
        do {
            let lease = try Lease.take(plan, limitGroup: faults.limitGroup)
            var environment: [String: String] = [:]
            if restored { environment["VZ_GUEST_RESTORED"] = "1" }
            if recovery { environment["VZ_GUEST_RECOVERY"] = "1" }
            try launch(GuestProgram.found(in: plan), lease, environment: environment, startsPaused: restored)
        } catch {
            settle(.stopped, error)
        }
    }

    private func launch(
        _ program: GuestProgram?, _ lease: Lease, environment: [String: String], startsPaused: Bool
    ) throws {
        let directory = try GuestDirectory()
        do {
            let launch = Guest.Launch(
                program: program, environment: self.environment(directory).merging(environment) { $1 },
                directory: directory, serialPort: try SerialPort(serialPort), startsPaused: startsPaused)
            for device in sockets { try device.open(directory) }
            let guest = Guest(launch, lease: lease) { [weak self] guest, event in
                self?.later { $0.happened(event, to: guest) }
            }
            self.guest = guest
            arrangedEnd = nil
            timersSet = false
            guest.start()
        } catch {
            for device in sockets { device.shut() }
            directory.remove()
            lease.release()
            throw error
        }
    }

    private func environment(_ directory: GuestDirectory) -> [String: String] {
        var variables = GuestEnvironment.path
        variables["HOME"] = directory.path
        variables["VZ_GUEST_CPUS"] = "\(plan.cpus)"
        variables["VZ_GUEST_MEMORY"] = "\(plan.memory)"
        variables["VZ_GUEST_DISK"] = plan.disks.first?.url.path
        variables["VZ_GUEST_MAC"] = plan.macAddresses.first
        if plan.hasSockets { variables["VZ_GUEST_VSOCK"] = directory.path }
        return variables
    }

    private func happened(_ event: Guest.Event, to guest: Guest) {
        guard guest === self.guest else { return }
        switch (event, state) {
        case (.started, .starting), (.resumed, .resuming):
            setTimers()
            settle(.running, nil)
        case (.paused, .pausing), (.paused, .restoring): settle(.paused, nil)
        case (.failed(let error), _):
            forgetGuest()
            let failure = VZError(
                .internalError, failure: "Internal virtualization error.",
                reason: "The guest could not be run.", underlying: error)
            settle(state == .restoring ? .stopped : .error, failure)
        case (.ended(let end), _):
            forgetGuest()
            ended(end)
        default: break
        }
    }

    private func ended(_ end: Guest.End) {
        isInstalling = false
        switch (state, arrangedEnd, end) {
        case (.stopping, _, _): settle(.stopped, nil)
        case (_, .error(let error), _): crashed(error)
        case (_, nil, .crashed(let how)):
            crashed(VZError(ended: "The guest stopped unexpectedly: \(how)."))
        default:
            settle(.stopped, answer == nil ? nil : VZError(ended: "The guest powered off."))
            if let owner { owner.delegate?.guestDidStop(owner) }
        }
    }

    private func crashed(_ error: VZError) {
        settle(.error, error)
        if let owner { owner.delegate?.virtualMachine(owner, didStopWithError: error) }
    }

    private func forgetGuest() {
        guest = nil
        for device in sockets { device.shut() }
    }

    // MARK: - Faults that come by themselves

    private func setTimers() {
        guard !timersSet, let guest else { return }
        timersSet = true
        let faults = currentFaults
        if let delay = faults.stopAfter {
            let end =
                faults.stopError.map { ArrangedEnd.error(VZError(askedFor: $0, of: "running")) } ?? .powerOff
            whileRunning(guest, after: delay) { core in
                core.arrangedEnd = end
                guest.end()
            }
        }
        if let delay = faults.disconnectNetworkAfter {
            whileRunning(guest, after: delay) { $0.disconnectNetworks() }
        }
    }

    private func whileRunning(
        _ guest: Guest, after milliseconds: Int, _ act: @escaping @Sendable (MachineCore) -> Void
    ) {
        queue.asyncAfter(deadline: .now() + .milliseconds(milliseconds)) { [weak self] in
            if let self, self.guest === guest, state == .running { act(self) }
        }
    }

    private func disconnectNetworks() {
        let error = VZError(
            .networkError, failure: "A network error occurred.",
            reason: "The network attachment was disconnected, as was asked for.")
        for device in networks where device.attachment != nil {
            device.attachment = nil
            if let owner {
                owner.delegate?.virtualMachine(
                    owner, networkDevice: device, attachmentWasDisconnectedWithError: error)
            }
        }
    }
}

/// Carries what the compiler cannot see to be confined to the machine's queue.
struct Transfer<Value>: @unchecked Sendable { let value: Value }
