import Virtualization

/// What the framework allows one VM on this host.
public struct HostLimits: Sendable, Equatable {
    /// Whether this host can run VMs at all (`VZVirtualMachine.isSupported`).
    public let isSupported: Bool
    /// Virtual CPUs.
    public let minimumCPUs: Int
    public let maximumCPUs: Int
    /// Memory, in bytes.
    public let minimumMemoryBytes: UInt64
    public let maximumMemoryBytes: UInt64

    /// This host's.
    public static var current: HostLimits {
        HostLimits(
            isSupported: VZVirtualMachine.isSupported,
            minimumCPUs: VZVirtualMachineConfiguration.minimumAllowedCPUCount,
            maximumCPUs: VZVirtualMachineConfiguration.maximumAllowedCPUCount,
            minimumMemoryBytes: VZVirtualMachineConfiguration.minimumAllowedMemorySize,
            maximumMemoryBytes: VZVirtualMachineConfiguration.maximumAllowedMemorySize)
    }

    /// The nearest number of CPUs that is allowed.
    func cpus(nearest wanted: Int) -> Int { min(max(wanted, minimumCPUs), maximumCPUs) }

    /// The nearest size that is allowed: between the bounds and, as `VZVirtualMachineConfiguration.memorySize` wants
    /// it, whole mebibytes (rounded down).
    func memoryBytes(nearest wanted: UInt64) -> UInt64 {
        let mebibyte: UInt64 = 1 << 20
        return min(max(wanted, minimumMemoryBytes), maximumMemoryBytes) / mebibyte * mebibyte
    }
}
