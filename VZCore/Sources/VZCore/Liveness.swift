import Synchronization

/// Counts the machines that exist in this process, for leak tests and metrics.
public struct VZCoreLiveness: Sendable {
    private static let counted = Atomic<Int>(0)

    /// Machines whose VM, descriptors and listeners still exist: one for each `Machine` (and installation) that is
    /// neither closed nor dropped.
    public static var machines: Int { counted.load(ordering: .acquiring) }

    /// Counts as one machine while it exists.
    final class Token: Sendable {
        init() { counted.add(1, ordering: .acquiringAndReleasing) }
        deinit { counted.subtract(1, ordering: .acquiringAndReleasing) }
    }
}
