@_exported import Foundation

/// Base of what takes part in events.
// objc: NSResponder 10.0
@MainActor
open class NSResponder: NSObject {}

/// An area of a window.
// objc: NSView 10.0
@MainActor
open class NSView: NSResponder {
    // objc: NSView frame 10.0
    open var frame: NSRect
    // objc: NSView autoresizingMask 10.0
    open var autoresizingMask: AutoresizingMask = []

    // objc: NSView initWithFrame: 10.0
    public init(frame frameRect: NSRect) { frame = frameRect }
    // objc: NSView init 10.0
    public convenience override init() { self.init(frame: .zero) }

    /// How a view follows its parent's size.
    // objc: NSAutoresizingMaskOptions 10.0
    public struct AutoresizingMask: OptionSet, Sendable {
        // objc: NSAutoresizingMaskOptions 10.0
        public let rawValue: UInt
        // objc: NSAutoresizingMaskOptions 10.0
        public init(rawValue: UInt) { self.rawValue = rawValue }
        // objc: NSAutoresizingMaskOptions NSViewWidthSizable=2 10.0
        public static let width = AutoresizingMask(rawValue: 2)
        // objc: NSAutoresizingMaskOptions NSViewHeightSizable=16 10.0
        public static let height = AutoresizingMask(rawValue: 16)
    }
}
