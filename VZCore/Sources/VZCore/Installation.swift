import Dispatch
import Foundation
import Virtualization

/// One run of `VZMacOSInstaller`, on the VM's queue: installs, then waits for the guest to power itself off (the
/// framework completes before that). Until then the VM must not be stopped or paused (VZMacOSInstaller.h).
final class Installation {
    typealias Completion = Result<Void, any Error>

    private let queue: DispatchQueue
    private let installer: VZMacOSInstaller
    private let progressTimer: any DispatchSourceTimer
    private let progress: @Sendable (Double) -> Void
    private var completion: Completion?
    private var powerOffTimer: (any DispatchSourceTimer)?
    private var done: ((Completion) -> Void)?

    /// `progress` and `done` are called on the VM's queue, `done` once at most.
    init(
        _ vm: VZVirtualMachine, from image: URL, queue: DispatchQueue,
        progress: @escaping @Sendable (Double) -> Void, done: @escaping (Completion) -> Void
    ) {
        self.queue = queue
        self.progress = progress
        self.done = done
        installer = VZMacOSInstaller(virtualMachine: vm, restoringFromImageAt: image)
        let observed = installer.progress
        // Polled, because only Apple's Foundation can observe a Progress. It is for display only.
        progressTimer = DispatchSource.makeTimerSource(queue: queue)
        progressTimer.schedule(deadline: .now() + .milliseconds(500), repeating: .milliseconds(500))
        progressTimer.setEventHandler { progress(observed.fractionCompleted) }
    }

    deinit {
        progressTimer.cancel()
        powerOffTimer?.cancel()
    }

    func start() {
        progress(installer.progress.fractionCompleted)
        progressTimer.activate()
        let target = WeakInstallation(installation: self)
        installer.install { target.installation?.completed($0) }
    }

    /// Cancels the installation; the framework then completes with an error.
    func cancel() { installer.progress.cancel() }

    /// The VM has ended: the guest powered off, or the framework ended it.
    func machineEnded(_ reason: Completion) {
        guard let completion else { return }
        finish(completion.flatMap { reason })
    }

    private func completed(_ completion: Completion) {
        dispatchPrecondition(condition: .onQueue(queue))
        self.completion = completion
        if installer.virtualMachine.hasEnded { return finish(completion) }
        let deadline = DispatchSource.makeTimerSource(queue: queue)
        // A guest that does not power off in time is stopped like any other.
        deadline.schedule(deadline: .now() + .seconds(60))
        deadline.setEventHandler { [weak self] in self?.finish(completion) }
        deadline.activate()
        powerOffTimer = deadline
    }

    private func finish(_ completion: Completion) {
        progressTimer.cancel()
        powerOffTimer?.cancel()
        done?(completion)
        done = nil
    }

    /// The framework completes on the VM's queue (VZMacOSInstaller.h), but its Swift signature does not promise that.
    private struct WeakInstallation: @unchecked Sendable {
        weak var installation: Installation?
    }
}
