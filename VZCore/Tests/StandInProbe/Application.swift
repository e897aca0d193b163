import AppKit
import Foundation

/// Runs the main loop as a window's does, and says in which order things happened.
@MainActor
func runAnApplication() {
    let application = NSApplication.shared
    let delegate = Delegate()
    application.delegate = delegate
    DispatchQueue.main.async {
        say("the main queue is served: \(application.isRunning)")
        application.stop(nil)
        DispatchQueue.main.async {
            say("no event came yet: \(application.isRunning)")
            let event = NSEvent.otherEvent(
                with: .applicationDefined, location: .zero, modifierFlags: [], timestamp: 0, windowNumber: 0,
                context: nil, subtype: 0, data1: 0, data2: 0)
            if let event { application.postEvent(event, atStart: true) }
        }
    }
    application.run()
    say("stopped: \(!application.isRunning)")
}

final class Delegate: NSObject, NSApplicationDelegate {
    func applicationDidFinishLaunching(_ notification: Notification) { say("launched") }
}
