import AppKit
import Dispatch
import Virtualization

/// The window of `--enable-graphics`, which shows the guest's screen. Closing it leaves the VM running.
@MainActor
public enum VMWindow {
    /// Runs the main loop, which a machine with a window needs, on the main thread until `stopMainLoop` is called.
    public static func runMainLoop() {
        let application = NSApplication.shared
        application.setActivationPolicy(.regular)
        application.run()
    }

    /// Makes `runMainLoop` return.
    public static func stopMainLoop() {
        let application = NSApplication.shared
        application.stop(nil)
        // The loop checks only after an event whether it was stopped.
        let event = NSEvent.otherEvent(
            with: .applicationDefined, location: .zero, modifierFlags: [], timestamp: 0, windowNumber: 0,
            context: nil,
            subtype: 0, data1: 0, data2: 0)
        if let event { application.postEvent(event, atStart: true) }
    }

    /// Opens the window of a machine made with `display` "window". It closes with the machine.
    /// - Throws: `invalidState` for a machine made without a window, `noSuchMachine` for one that is closed.
    public static func show(_ machine: Machine, title: String) throws(VZFailure) {
        guard machine.spec.display == .window else {
            throw VZFailure(
                code: .invalidState,
                reason:
                    "opening the window of the VM of \(machine.spec.bundle): it was created without a display"
            )
        }
        let screen = GuestScreen(title)
        try machine.assumeIsolated { machine in
            Result { () throws(VZFailure) in
                try machine.show { vm in
                    nonisolated(unsafe) let vm = vm
                    MainActor.assumeIsolated { screen.show(vm) }
                }
            }
        }.get()
    }
}

/// A window and the view in it.
@MainActor
private final class GuestScreen {
    private let window: NSWindow
    private let view = VZVirtualMachineView()

    init(_ title: String) {
        window = NSWindow(
            contentRect: NSRect(x: 0, y: 0, width: Screen.width, height: Screen.height),
            styleMask: [.titled, .closable, .miniaturizable, .resizable], backing: .buffered, defer: false)
        // This object owns the window, not its close button.
        window.isReleasedWhenClosed = false
        window.title = title
        window.contentView = view
        window.center()
    }

    /// Shows the VM; nil closes the window.
    func show(_ vm: VZVirtualMachine?) {
        view.virtualMachine = vm
        if vm == nil {
            window.close()
        } else {
            window.makeKeyAndOrderFront(nil)
            NSApplication.shared.activate()
        }
    }
}
