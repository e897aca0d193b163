import Foundation

/// A value behind a lock. `Synchronization.Mutex` would do, but on Linux the kernel hands a contended one over where the
/// thread sanitizer cannot see it, which then tells of races that are none; this lock it sees.
final class Locked<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: sending Value) { self.value = value }

    func with<Result: Sendable>(_ body: (inout Value) -> Result) -> Result {
        lock.withLock { body(&value) }
    }
}
