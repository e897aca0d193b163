import Dispatch

/// Runs an actor on a serial dispatch queue: the framework requires that a VM is used on its queue and completes calls
/// there, so the queue is the actor's executor. (`DispatchSerialQueue` does the same, but only on macOS.)
final class QueueExecutor: SerialExecutor {
    let queue: DispatchQueue

    init(_ queue: DispatchQueue) { self.queue = queue }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let executor = asUnownedSerialExecutor()
        queue.async { job.runSynchronously(on: executor) }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

    func checkIsolated() { dispatchPrecondition(condition: .onQueue(queue)) }
}

/// The main queue, which is not necessarily served by the main thread.
enum MainQueue {
    // A key is only an identity, but Dispatch does not mark it Sendable.
    private nonisolated(unsafe) static let mark: DispatchSpecificKey<Bool> = {
        let mark = DispatchSpecificKey<Bool>()
        DispatchQueue.main.setSpecific(key: mark, value: true)
        return mark
    }()

    /// Whether the caller runs on it.
    static var isHere: Bool { DispatchQueue.getSpecific(key: mark) == true }
}
