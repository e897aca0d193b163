import Dispatch
import Foundation

/// Installs macOS on a machine. Made and used on the machine's queue.
// objc: VZMacOSInstaller 12.0
open class VZMacOSInstaller: NSObject {
    // objc: VZMacOSInstaller virtualMachine 12.0
    public let virtualMachine: VZVirtualMachine
    // objc: VZMacOSInstaller restoreImageURL 12.0
    public let restoreImageURL: URL
    /// How far the installation is. Cancelling it cancels the installation; before there is one that is a
    /// mistake.
    // objc: VZMacOSInstaller progress 12.0
    public let progress = Progress(totalUnitCount: 100)
    private var run: InstallationRun?

    /// Installs the restore image in a local file on a machine that is stopped.
    // objc: VZMacOSInstaller initWithVirtualMachine:restoreImageURL: 12.0
    public init(virtualMachine: VZVirtualMachine, restoringFromImageAt restoreImageFileURL: URL) {
        if !restoreImageFileURL.isFileURL {
            Violations.report("the restore image \(restoreImageFileURL) is not a local file")
        }
        self.virtualMachine = virtualMachine
        restoreImageURL = restoreImageFileURL
    }

    deinit { run?.abandon() }

    /// Installs, once. The machine runs meanwhile and may be neither stopped nor paused; it is running still
    /// when the handler is called, and powers itself off then: wait for the delegate's `guestDidStop(_:)`.
    /// Ends with `VZError.operationCancelled`, `.installationFailed`, or as the loading of the image or a
    /// start does.
    // objc: VZMacOSInstaller installWithCompletionHandler: 12.0
    @preconcurrency
    open func install(completionHandler: @escaping @Sendable (Result<Void, any Error>) -> Void) {
        guard virtualMachine.checkQueue("VZMacOSInstaller.install(completionHandler:)") else { return }
        let core = virtualMachine.installing
        guard run == nil else {
            return Violations.report("install(completionHandler:) was called more than once")
        }
        if progress.isCancelled { Violations.report("the installation was cancelled before it began") }
        do {
            let image = try RestoreImageFile.read(restoreImageURL)
            let run = InstallationRun(image, core.currentFaults, progress, core, answer: completionHandler)
            try core.beginInstalling(image)
            self.run = run
            run.start()
        } catch {
            core.later { _ in completionHandler(.failure(error)) }
        }
    }
}

/// One installation. It works on its thread and answers on the machine's queue.
private final class InstallationRun: Sendable {
    private let image: RestoreImageFile
    private let faults: Faults
    private let progress: Progress
    private let core: MachineCore
    private let answer: @Sendable (Result<Void, any Error>) -> Void
    private let cancelled = DispatchSemaphore(value: 0)

    init(
        _ image: RestoreImageFile, _ faults: Faults, _ progress: Progress, _ core: MachineCore,
        answer: @escaping @Sendable (Result<Void, any Error>) -> Void
    ) {
        self.image = image
        self.faults = faults
        self.progress = progress
        self.core = core
        self.answer = answer
        progress.cancellationHandler = { [cancelled] in cancelled.signal() }
    }

    func start() {
        let thread = Thread {
            let result = Result { try self.install() }
            self.core.queue.async {
                self.core.installed()
                self.answer(result)
                self.core.powerOff()
            }
        }
        thread.name = "vz-install"
        thread.start()
    }

    /// The last reference to the installer was dropped.
    func abandon() { progress.cancel() }

    /// Writes the beginning of the disk, in ten parts.
    private func install() throws {
        let content = image.diskBeginning
        guard let disk = core.plan.disks.first, !disk.isReadOnly else {
            throw failed("There is no disk to install on.")
        }
        let file = open(disk.url.path, O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { throw failed("The disk cannot be opened.", NSError.posix(errno)) }
        defer { close(file) }
        let part = content.count / 10 + 1
        for step in 0..<10 {
            if step == 5 { try meetFault() }
            if progress.isCancelled { throw cancellation }
            let bytes = Array(content.dropFirst(step * part).prefix(part))
            guard pwrite(file, bytes, bytes.count, off_t(step * part)) == bytes.count else {
                throw failed("The disk cannot be written.", NSError.posix(errno))
            }
            progress.completedUnitCount += 10
        }
    }

    private func meetFault() throws {
        if let code = faults.fail[.install] { throw VZError(askedFor: code, of: "installing") }
        if faults.hang.contains(.install) { cancelled.wait() }
    }

    private var cancellation: VZError {
        VZError(
            .operationCancelled, failure: "The operation was cancelled.",
            reason: "The installation was cancelled.")
    }

    private func failed(_ reason: String, _ underlying: (any Error)? = nil) -> VZError {
        VZError(
            .installationFailed, failure: "An error occurred during installation.", reason: reason,
            underlying: underlying)
    }
}
