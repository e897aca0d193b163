import Foundation

// What the tests of the stand-in run in a separate process. The first argument selects what.
let arguments = Array(CommandLine.arguments.dropFirst())
switch arguments.first {
case "hold": hold(disk: arguments[1])
case "cycles": cycles(Int(arguments[1]) ?? 0, disk: arguments[2])
case "wrong-queue": useTheWrongQueue(disk: arguments[1])
case "invalid": makeAnInvalidMachine()
case "application": runAnApplication()
case "echo": GuestSide.echo(on: arguments[1])
case "call": GuestSide.call(arguments[1], saying: arguments[2])
default:
    say("usage: StandInProbe hold|cycles|wrong-queue|invalid|application|echo|call …")
    exit(64)
}
