import Dispatch
import Foundation

/// Whether the caller is on a machine's queue, which the framework demands of every use of a machine but
/// `queue`.
final class QueueAffinity: Sendable {
    let queue: DispatchQueue
    private let mark: UUID

    init(_ queue: DispatchQueue) {
        self.queue = queue
        mark = Self.mark(queue)
    }

    var isOnQueue: Bool { DispatchQueue.getSpecific(key: Self.key) == mark }

    /// False outside the queue, where tests collect violations; else that ends the process.
    @discardableResult
    func check(_ what: @autoclosure () -> String) -> Bool {
        if isOnQueue { return true }
        Violations.report("\(what()) was used outside the virtual machine's queue \"\(queue.label)\"")
        return false
    }

    // A key is only an identity; Dispatch does not mark it Sendable.
    nonisolated(unsafe) private static let key = DispatchSpecificKey<UUID>()
    private static let marking = NSLock()

    /// A queue is known by a mark of ours: on Linux two DispatchQueue objects may stand for one queue.
    private static func mark(_ queue: DispatchQueue) -> UUID {
        marking.withLock {
            if let mark = queue.getSpecific(key: key) { return mark }
            let mark = UUID()
            queue.setSpecific(key: key, value: mark)
            return mark
        }
    }
}
