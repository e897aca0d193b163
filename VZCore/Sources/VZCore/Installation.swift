import Dispatch
import Foundation
import Virtualization

/// One run of `VZMacOSInstaller`, on the VM's queue: installs, then waits for the guest to power itself off (the
/// framework answers before that). Until then the VM may be neither stopped nor paused (VZMacOSInstaller.h).
final class Installation {
    typealias Answer = Result<Void, any Error>

    private let queue: DispatchQueue
    private let installer: VZMacOSInstaller
    private let watch: any DispatchSourceTimer
    private let progress: @Sendable (Double) -> Void
    private var answer: Answer?
    private var powerOff: (any DispatchSourceTimer)?
    private var done: ((Answer) -> Void)?

    /// `progress` and `done` are called on the VM's queue, `done` once at most.
    init(
        _ vm: VZVirtualMachine, from image: URL, queue: DispatchQueue,
        progress: @escaping @Sendable (Double) -> Void, done: @escaping (Answer) -> Void
    ) {
        self.queue = queue
        self.progress = progress
        self.done = done
        installer = VZMacOSInstaller(virtualMachine: vm, restoringFromImageAt: image)
        let shown = installer.progress
        // For people to look at: nothing waits for it. (Only Apple's Foundation can observe a Progress.)
        watch = DispatchSource.makeTimerSource(queue: queue)
        watch.schedule(deadline: .now() + .milliseconds(500), repeating: .milliseconds(500))
        watch.setEventHandler { progress(shown.fractionCompleted) }
    }

    deinit {
        watch.cancel()
        powerOff?.cancel()
    }

    func start() {
        progress(installer.progress.fractionCompleted)
        watch.activate()
        let asker = Asker(installation: self)
        installer.install { asker.installation?.answered($0) }
    }

    /// Asks the framework to give up, which it answers with an error.
    func cancel() { installer.progress.cancel() }

    /// The VM is over: the guest powered off, or the framework ended it.
    func machineEnded(_ reason: Answer) {
        guard let answer else { return }
        finish(answer.flatMap { reason })
    }

    private func answered(_ answer: Answer) {
        dispatchPrecondition(condition: .onQueue(queue))
        self.answer = answer
        if installer.virtualMachine.isOver { return finish(answer) }
        let deadline = DispatchSource.makeTimerSource(queue: queue)
        // A guest that stays up is stopped like any other.
        deadline.schedule(deadline: .now() + .seconds(60))
        deadline.setEventHandler { [weak self] in self?.finish(answer) }
        deadline.activate()
        powerOff = deadline
    }

    private func finish(_ answer: Answer) {
        watch.cancel()
        powerOff?.cancel()
        done?(answer)
        done = nil
    }

    /// The framework answers on the VM's queue (VZMacOSInstaller.h), though Swift is told it may be anywhere.
    private struct Asker: @unchecked Sendable {
        weak var installation: Installation?
    }
}
