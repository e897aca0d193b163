import Foundation

/// Base of the options of a start.
// objc: VZVirtualMachineStartOptions 13.0
open class VZVirtualMachineStartOptions: NSObject {}

/// The options of the start of a Mac.
// objc: VZMacOSVirtualMachineStartOptions 13.0
open class VZMacOSVirtualMachineStartOptions: VZVirtualMachineStartOptions {
    /// Boots into recovery. The stand-in has no recovery system: the guest starts as always, with `VZ_GUEST_RECOVERY=1`.
    // objc: VZMacOSVirtualMachineStartOptions startUpFromMacOSRecovery 13.0
    open var startUpFromMacOSRecovery = false
}
