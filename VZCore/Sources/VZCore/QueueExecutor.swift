import Dispatch

/// Runs an actor on a serial dispatch queue: the framework demands that a VM is used on its queue and answers there,
/// so the queue is the actor. (`DispatchSerialQueue` is the same on macOS alone.)
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

/// The main queue, which need not be served by the main thread.
enum MainQueue {
    // A key is an identity and nothing else, which Dispatch does not say in Swift's words.
    private nonisolated(unsafe) static let mark: DispatchSpecificKey<Bool> = {
        let mark = DispatchSpecificKey<Bool>()
        DispatchQueue.main.setSpecific(key: mark, value: true)
        return mark
    }()

    /// Whether the caller runs on it.
    static var isHere: Bool { DispatchQueue.getSpecific(key: mark) == true }
}
