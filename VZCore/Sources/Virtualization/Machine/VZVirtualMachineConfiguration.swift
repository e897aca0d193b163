import Foundation

/// What a virtual machine is made of. `VZVirtualMachine` takes a copy: later changes do not reach it.
// objc: VZVirtualMachineConfiguration 11.0
open class VZVirtualMachineConfiguration: NSObject {
    /// How the guest is booted. Needed.
    // objc: VZVirtualMachineConfiguration bootLoader 11.0
    open var bootLoader: VZBootLoader?
    /// Bytes: whole MiB between `minimumAllowedMemorySize` and `maximumAllowedMemorySize`.
    // objc: VZVirtualMachineConfiguration memorySize 11.0
    open var memorySize: UInt64 = VZVirtualMachineConfiguration.minimumAllowedMemorySize
    /// Virtual CPUs.
    // objc: VZVirtualMachineConfiguration CPUCount 11.0
    open var cpuCount: Int = VZVirtualMachineConfiguration.minimumAllowedCPUCount
    /// Generic, or a Mac. A Mac boots with `VZMacOSBootLoader` and only a Mac does.
    // objc: VZVirtualMachineConfiguration platform 12.0
    open var platform: VZPlatformConfiguration = VZGenericPlatformConfiguration()
    // objc: VZVirtualMachineConfiguration entropyDevices 11.0
    open var entropyDevices: [VZEntropyDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration memoryBalloonDevices 11.0
    open var memoryBalloonDevices: [VZMemoryBalloonDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration networkDevices 11.0
    open var networkDevices: [VZNetworkDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration serialPorts 11.0
    open var serialPorts: [VZSerialPortConfiguration] = []
    // objc: VZVirtualMachineConfiguration socketDevices 11.0
    open var socketDevices: [VZSocketDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration storageDevices 11.0
    open var storageDevices: [VZStorageDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration keyboards 12.0
    open var keyboards: [VZKeyboardConfiguration] = []
    // objc: VZVirtualMachineConfiguration pointingDevices 12.0
    open var pointingDevices: [VZPointingDeviceConfiguration] = []
    // objc: VZVirtualMachineConfiguration graphicsDevices 12.0
    open var graphicsDevices: [VZGraphicsDeviceConfiguration] = []

    /// Bytes.
    // objc: VZVirtualMachineConfiguration +minimumAllowedMemorySize 11.0
    open class var minimumAllowedMemorySize: UInt64 { StandInHost.current.minimumMemory }
    /// Bytes.
    // objc: VZVirtualMachineConfiguration +maximumAllowedMemorySize 11.0
    open class var maximumAllowedMemorySize: UInt64 { StandInHost.current.memory }
    // objc: VZVirtualMachineConfiguration +minimumAllowedCPUCount 11.0
    open class var minimumAllowedCPUCount: Int { 1 }
    // objc: VZVirtualMachineConfiguration +maximumAllowedCPUCount 11.0
    open class var maximumAllowedCPUCount: Int { StandInHost.current.cpus }

    /// Whether a machine can be made of this. Throws `VZError.invalidVirtualMachineConfiguration` with the
    /// first mistake.
    // objc: VZVirtualMachineConfiguration validateWithError: 11.0
    open func validate() throws { try Validation.check(self) }
    /// Whether a machine made of this can be saved and restored. Throws what cannot.
    // objc: VZVirtualMachineConfiguration validateSaveRestoreSupportWithError: 14.0
    open func validateSaveRestoreSupport() throws { try Validation.checkSaveRestore(self) }
}
