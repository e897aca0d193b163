import Foundation

/// The application. `run()` serves the main run loop, and with it the main queue.
// objc: NSApplication 10.0
@MainActor
open class NSApplication: NSResponder {
    // objc: NSApplication +sharedApplication 10.0
    public static let shared = NSApplication()

    // objc: NSApplication delegate 10.0
    open weak var delegate: (any NSApplicationDelegate)?
    // objc: NSApplication isRunning 10.0
    open private(set) var isRunning = false
    private var policy = ActivationPolicy.prohibited
    private var stopped = false
    private var events = 0

    // objc: NSApplication activationPolicy 10.6
    open func activationPolicy() -> ActivationPolicy { policy }
    // objc: NSApplication setActivationPolicy: 10.6
    @discardableResult
    open func setActivationPolicy(_ activationPolicy: ActivationPolicy) -> Bool {
        policy = activationPolicy
        return true
    }
    // objc: NSApplication activate 14.0
    open func activate() {}

    /// Serves the main run loop until `stop(_:)` was called and an event came after it. Only on the main
    /// thread.
    // objc: NSApplication run 10.0
    open func run() {
        isRunning = true
        stopped = false
        let launched = Notification.Name("NSApplicationDidFinishLaunchingNotification")
        delegate?.applicationDidFinishLaunching(Notification(name: launched, object: self))
        var seen = events
        while true {
            if events != seen {
                seen = events
                if stopped { break }
            }
            _ = RunLoop.main.run(mode: .default, before: .distantFuture)
        }
        isRunning = false
    }

    /// Makes `run()` return after the next event. Anything but an event (a block on the main queue) does not
    /// count.
    // objc: NSApplication stop: 10.0
    open func stop(_ sender: Any?) { stopped = true }
    // objc: NSApplication postEvent:atStart: 10.0
    open func postEvent(_ event: NSEvent, atStart flag: Bool) { events += 1 }

    func windowClosed() {
        if delegate?.applicationShouldTerminateAfterLastWindowClosed(self) == true { terminate(self) }
    }

    /// Ends the process.
    // objc: NSApplication terminate: 10.0
    open func terminate(_ sender: Any?) {
        let ending = Notification.Name("NSApplicationWillTerminateNotification")
        delegate?.applicationWillTerminate(Notification(name: ending, object: self))
        exit(0)
    }

    /// Whether the application has a place in the Dock.
    // objc: NSApplicationActivationPolicy 10.6
    public enum ActivationPolicy: Int, Sendable {
        // objc: NSApplicationActivationPolicy NSApplicationActivationPolicyRegular=0 10.6
        case regular = 0
        // objc: NSApplicationActivationPolicy NSApplicationActivationPolicyAccessory=1 10.6
        case accessory = 1
        // objc: NSApplicationActivationPolicy NSApplicationActivationPolicyProhibited=2 10.6
        case prohibited = 2
    }
}

/// Receives the application's events. Every method is optional.
// objc: NSApplicationDelegate 10.0
@MainActor
public protocol NSApplicationDelegate: NSObjectProtocol {
    // objc: NSApplicationDelegate applicationDidFinishLaunching: 10.0
    func applicationDidFinishLaunching(_ notification: Notification)
    // objc: NSApplicationDelegate applicationWillTerminate: 10.0
    func applicationWillTerminate(_ notification: Notification)
    // objc: NSApplicationDelegate applicationShouldTerminateAfterLastWindowClosed: 10.0
    func applicationShouldTerminateAfterLastWindowClosed(_ sender: NSApplication) -> Bool
}

extension NSApplicationDelegate {
    // objc: NSApplicationDelegate applicationDidFinishLaunching: 10.0
    public func applicationDidFinishLaunching(_ notification: Notification) {}
    // objc: NSApplicationDelegate applicationWillTerminate: 10.0
    public func applicationWillTerminate(_ notification: Notification) {}
    // objc: NSApplicationDelegate applicationShouldTerminateAfterLastWindowClosed: 10.0
    public func applicationShouldTerminateAfterLastWindowClosed(_ sender: NSApplication) -> Bool { false }
}

/// An event.
// objc: NSEvent 10.0
open class NSEvent: NSObject {
    /// An event that the application defines.
    // objc: NSEvent +otherEventWithType:location:modifierFlags:timestamp:windowNumber:context:subtype:data1:data2: 10.0
    open class func otherEvent(
        with type: EventType, location: NSPoint, modifierFlags flags: ModifierFlags,
        timestamp time: TimeInterval,
        windowNumber: Int, context: NSGraphicsContext?, subtype: Int16, data1: Int, data2: Int
    ) -> NSEvent? {
        NSEvent()
    }

    /// Kinds of events.
    // objc: NSEventType 10.0
    public enum EventType: UInt, Sendable {
        // objc: NSEventType NSEventTypeApplicationDefined=15 10.0
        case applicationDefined = 15
    }

    /// Keys held.
    // objc: NSEventModifierFlags 10.0
    public struct ModifierFlags: OptionSet, Sendable {
        // objc: NSEventModifierFlags 10.0
        public let rawValue: UInt
        // objc: NSEventModifierFlags 10.0
        public init(rawValue: UInt) { self.rawValue = rawValue }
    }
}

/// Where drawing goes. Only its type is needed.
// objc: NSGraphicsContext 10.0
open class NSGraphicsContext: NSObject {}
