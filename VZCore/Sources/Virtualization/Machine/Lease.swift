import Foundation

/// What a machine holds while it runs: its place among the Macs, and its files, which no other machine may
/// write.
final class Lease: Sendable {
    /// How many Macs may run at a time, as on a Mac.
    static let mostMacs = 2

    private let held: Lock<(place: String?, files: [FileLock])>

    private init(place: String?, files: [FileLock]) { held = Lock((place, files)) }

    /// Throws what VZVirtualMachine's start ends with.
    static func take(_ plan: MachinePlan, limitGroup: String) throws -> Lease {
        let place = plan.hardwareModel == nil ? nil : limitGroup
        if let place { try Macs.enter(place) }
        // From here on, releasing the lease leaves the place.
        let lease = Lease(place: place, files: [])
        do {
            for disk in plan.disks {
                let lock = try locked(
                    disk.url, exclusively: !disk.isReadOnly, or: "The storage device attachment is invalid.")
                lease.held.withLock { $0.files.append(lock) }
            }
            if let storage = plan.auxiliaryStorage {
                let lock = try locked(storage, exclusively: true, or: "Failed to lock auxiliary storage.")
                lease.held.withLock { $0.files.append(lock) }
            }
        } catch {
            lease.release()
            throw error
        }
        return lease
    }

    deinit { release() }

    func release() {
        held.withLock { held in
            held.files = []
            if let place = held.place { Macs.leave(place) }
            held.place = nil
        }
    }

    private static func locked(_ url: URL, exclusively: Bool, or reason: String) throws -> FileLock {
        do {
            return try FileLock(url, exclusively: exclusively)
        } catch {
            throw VZError.configuration(reason, underlying: error)
        }
    }

    private enum Macs {
        private static let running = Lock<[String: Int]>([:])

        static func enter(_ group: String) throws {
            try running.withLock { running in
                guard running[group, default: 0] < mostMacs else {
                    throw VZError(
                        .virtualMachineLimitExceeded,
                        failure: "The number of virtual machines exceeds the limit.",
                        reason: "The maximum supported number of active virtual machines has been reached.")
                }
                running[group, default: 0] += 1
            }
        }

        static func leave(_ group: String) {
            running.withLock { running in
                let left = running[group, default: 1] - 1
                running[group] = left == 0 ? nil : left
            }
        }
    }
}

/// A file no machine of any process locks otherwise: one writes it, or several read it.
private final class FileLock: Sendable {
    private let file: Int32

    /// Throws the POSIX error: EAGAIN if the file is locked.
    init(_ url: URL, exclusively: Bool) throws {
        file = open(url.path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { throw NSError.posix(errno) }
        guard flock(file, (exclusively ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 else {
            let failure = errno
            close(file)
            throw NSError.posix(failure)
        }
    }

    deinit {
        // A child being spawned may hold a copy of the descriptor for a moment: closing ours would not
        // unlock.
        flock(file, LOCK_UN)
        close(file)
    }
}
