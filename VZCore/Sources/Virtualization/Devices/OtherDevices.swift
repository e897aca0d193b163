import Foundation

/// Base of the entropy devices.
// objc: VZEntropyDeviceConfiguration 11.0
open class VZEntropyDeviceConfiguration: NSObject {
    override init() {}
}

/// The host's randomness over virtio.
// objc: VZVirtioEntropyDeviceConfiguration 11.0
open class VZVirtioEntropyDeviceConfiguration: VZEntropyDeviceConfiguration {
    // objc: VZVirtioEntropyDeviceConfiguration init 11.0
    public override init() {}
}

/// Base of the memory balloons of a configuration.
// objc: VZMemoryBalloonDeviceConfiguration 11.0
open class VZMemoryBalloonDeviceConfiguration: NSObject {
    override init() {}
}

/// A virtio balloon. A machine has at most one.
// objc: VZVirtioTraditionalMemoryBalloonDeviceConfiguration 11.0
open class VZVirtioTraditionalMemoryBalloonDeviceConfiguration: VZMemoryBalloonDeviceConfiguration {
    // objc: VZVirtioTraditionalMemoryBalloonDeviceConfiguration init 11.0
    public override init() {}
}

/// Base of the memory balloons of a machine that was made.
// objc: VZMemoryBalloonDevice 11.0
open class VZMemoryBalloonDevice: NSObject {
    override init() {}
}

/// The virtio balloon of a machine that was made.
// objc: VZVirtioTraditionalMemoryBalloonDevice 11.0
open class VZVirtioTraditionalMemoryBalloonDevice: VZMemoryBalloonDevice {
    private let affinity: QueueAffinity
    private let full: UInt64
    private var target: UInt64

    init(affinity: QueueAffinity, memory: UInt64) {
        self.affinity = affinity
        full = memory
        target = memory
    }

    /// Bytes the guest should make do with, whole MiB, at most the machine's memory. Only on the machine's
    /// queue.
    // objc: VZVirtioTraditionalMemoryBalloonDevice targetVirtualMachineMemorySize 11.0
    open var targetVirtualMachineMemorySize: UInt64 {
        get {
            affinity.check("VZVirtioTraditionalMemoryBalloonDevice.targetVirtualMachineMemorySize")
            return target
        }
        set {
            affinity.check("VZVirtioTraditionalMemoryBalloonDevice.targetVirtualMachineMemorySize")
            let lowest = VZVirtualMachineConfiguration.minimumAllowedMemorySize
            target = min(max(newValue, lowest), full) & ~UInt64(0xfffff)
        }
    }
}

/// Base of the keyboards.
// objc: VZKeyboardConfiguration 12.0
open class VZKeyboardConfiguration: NSObject {
    override init() {}
}

/// A Mac's keyboard, for macOS guests from 13 on. Can be saved.
// objc: VZMacKeyboardConfiguration 14.0
open class VZMacKeyboardConfiguration: VZKeyboardConfiguration {
    // objc: VZMacKeyboardConfiguration init 14.0
    public override init() {}
}

/// A USB keyboard. A machine with one cannot be saved.
// objc: VZUSBKeyboardConfiguration 12.0
open class VZUSBKeyboardConfiguration: VZKeyboardConfiguration {
    // objc: VZUSBKeyboardConfiguration init 12.0
    public override init() {}
}

/// Base of the pointing devices.
// objc: VZPointingDeviceConfiguration 12.0
open class VZPointingDeviceConfiguration: NSObject {
    override init() {}
}

/// A Mac's trackpad, for macOS guests from 13 on. Can be saved.
// objc: VZMacTrackpadConfiguration 13.0
open class VZMacTrackpadConfiguration: VZPointingDeviceConfiguration {
    // objc: VZMacTrackpadConfiguration init 13.0
    public override init() {}
}

/// A USB pointer with screen coordinates. A machine with one cannot be saved.
// objc: VZUSBScreenCoordinatePointingDeviceConfiguration 12.0
open class VZUSBScreenCoordinatePointingDeviceConfiguration: VZPointingDeviceConfiguration {
    // objc: VZUSBScreenCoordinatePointingDeviceConfiguration init 12.0
    public override init() {}
}
