import AppKit

/// Shows a machine's display. The stand-in draws nothing.
// objc: VZVirtualMachineView 12.0
open class VZVirtualMachineView: NSView {
    // objc: VZVirtualMachineView virtualMachine 12.0
    open var virtualMachine: VZVirtualMachine?
    /// Whether keys such as Command-Tab go to the guest.
    // objc: VZVirtualMachineView capturesSystemKeys 12.0
    open var capturesSystemKeys = false
    /// Whether the guest's display follows the view's size.
    // objc: VZVirtualMachineView automaticallyReconfiguresDisplay 14.0
    open var automaticallyReconfiguresDisplay = false
}
