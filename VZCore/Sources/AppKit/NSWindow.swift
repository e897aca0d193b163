import Foundation

/// A window. The stand-in stores its properties and shows nothing.
// objc: NSWindow 10.0
@MainActor
open class NSWindow: NSResponder {
    // objc: NSWindow title 10.0
    open var title = ""
    // objc: NSWindow contentView 10.0
    open var contentView: NSView?
    // objc: NSWindow delegate 10.0
    open weak var delegate: (any NSWindowDelegate)?
    // objc: NSWindow isReleasedWhenClosed 10.0
    open var isReleasedWhenClosed = true
    // objc: NSWindow isVisible 10.0
    open private(set) var isVisible = false
    // objc: NSWindow frame 10.0
    open private(set) var frame: NSRect
    // objc: NSWindow styleMask 10.0
    open var styleMask: StyleMask

    // objc: NSWindow initWithContentRect:styleMask:backing:defer: 10.0
    public init(
        contentRect: NSRect, styleMask style: StyleMask, backing backingStoreType: BackingStoreType,
        defer flag: Bool
    ) {
        frame = contentRect
        styleMask = style
    }

    // objc: NSWindow makeKeyAndOrderFront: 10.0
    open func makeKeyAndOrderFront(_ sender: Any?) { isVisible = true }
    // objc: NSWindow center 10.0
    open func center() {}
    /// Closes without asking.
    // objc: NSWindow close 10.0
    open func close() {
        guard isVisible else { return }
        delegate?.windowWillClose(
            Notification(name: Notification.Name("NSWindowWillCloseNotification"), object: self))
        isVisible = false
        NSApplication.shared.windowClosed()
    }
    /// Closes as the close button does: asks the delegate.
    // objc: NSWindow performClose: 10.0
    open func performClose(_ sender: Any?) {
        guard styleMask.contains(.closable), delegate?.windowShouldClose(self) ?? true else { return }
        close()
    }

    /// What a window has and can do.
    // objc: NSWindowStyleMask 10.0
    public struct StyleMask: OptionSet, Sendable {
        // objc: NSWindowStyleMask 10.0
        public let rawValue: UInt
        // objc: NSWindowStyleMask 10.0
        public init(rawValue: UInt) { self.rawValue = rawValue }
        // objc: NSWindowStyleMask NSWindowStyleMaskTitled=1 10.0
        public static let titled = StyleMask(rawValue: 1)
        // objc: NSWindowStyleMask NSWindowStyleMaskClosable=2 10.0
        public static let closable = StyleMask(rawValue: 2)
        // objc: NSWindowStyleMask NSWindowStyleMaskMiniaturizable=4 10.0
        public static let miniaturizable = StyleMask(rawValue: 4)
        // objc: NSWindowStyleMask NSWindowStyleMaskResizable=8 10.0
        public static let resizable = StyleMask(rawValue: 8)
    }

    /// Where a window's pixels are kept.
    // objc: NSBackingStoreType 10.0
    public enum BackingStoreType: UInt, Sendable {
        // objc: NSBackingStoreType NSBackingStoreBuffered=2 10.0
        case buffered = 2
    }
}

/// Receives a window's events. Every method is optional.
// objc: NSWindowDelegate 10.0
@MainActor
public protocol NSWindowDelegate: NSObjectProtocol {
    // objc: NSWindowDelegate windowShouldClose: 10.0
    func windowShouldClose(_ sender: NSWindow) -> Bool
    // objc: NSWindowDelegate windowWillClose: 10.0
    func windowWillClose(_ notification: Notification)
}

extension NSWindowDelegate {
    // objc: NSWindowDelegate windowShouldClose: 10.0
    public func windowShouldClose(_ sender: NSWindow) -> Bool { true }
    // objc: NSWindowDelegate windowWillClose: 10.0
    public func windowWillClose(_ notification: Notification) {}
}
