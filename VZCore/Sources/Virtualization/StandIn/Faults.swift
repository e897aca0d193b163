import Foundation

/// What a machine is to do wrong, for tests. Kept as JSON in one of the machine's files (`StandInFile`), or
/// given to a machine with `VZVirtualMachine.faults`:
///
/// `{"standin": {"start_delay_ms": 50, "fail": {"start": 6}, "hang": ["pause"], "stop_after_ms": 100,
/// "stop_error": 1, "ignore_request_stop": true, "disconnect_network_after_ms": 10, "no_save": true,
/// "limit_group": "mine"}}`
// spi: tests make machines fail
@_spi(StandIn) public struct Faults: Sendable, Equatable {
    /// What can be made to fail or hang.
    // spi: part of Faults
    @_spi(StandIn) public enum Operation: String, Sendable, CaseIterable {
        case start, pause, resume, stop, save, restore, connect, install
    }

    /// How long a start takes, in milliseconds.
    // spi: part of Faults
    @_spi(StandIn) public var startDelay = 0
    /// The error each of these ends with. The machine's state is afterwards what it was before.
    // spi: part of Faults
    @_spi(StandIn) public var fail: [Operation: VZError.Code] = [:]
    /// These begin and never end. An installation hangs half done, and can be cancelled.
    // spi: part of Faults
    @_spi(StandIn) public var hang: Set<Operation> = []
    /// How long after its start the guest ends by itself, in milliseconds.
    // spi: part of Faults
    @_spi(StandIn) public var stopAfter: Int?
    /// What it ends with then; nil: it powers off.
    // spi: part of Faults
    @_spi(StandIn) public var stopError: VZError.Code?
    /// The guest does not get a `requestStop()`.
    // spi: part of Faults
    @_spi(StandIn) public var ignoreRequestStop = false
    /// How long after its start the guest's networks are lost, in milliseconds.
    // spi: part of Faults
    @_spi(StandIn) public var disconnectNetworkAfter: Int?
    /// The configuration cannot be saved: `validateSaveRestoreSupport()` throws.
    // spi: part of Faults
    @_spi(StandIn) public var noSave = false
    /// Macs are limited to two in a group; every one is in the group "" by default.
    // spi: tests of one process must not count each other's machines
    @_spi(StandIn) public var limitGroup = ""

    /// None.
    // spi: part of Faults
    @_spi(StandIn) public init() {}

    struct Malformed: Error, Equatable { let text: String }

    init(_ json: [String: Any]) throws(Malformed) {
        for (key, value) in json { try take(key, value) }
    }

    private mutating func take(_ key: String, _ value: Any) throws(Malformed) {
        switch key {
        case "start_delay_ms": startDelay = try Self.number(key, value)
        case "stop_after_ms": stopAfter = try Self.number(key, value)
        case "disconnect_network_after_ms": disconnectNetworkAfter = try Self.number(key, value)
        case "stop_error": stopError = try Self.code(key, value)
        case "ignore_request_stop": ignoreRequestStop = try Self.as(Bool.self, key, value)
        case "no_save": noSave = try Self.as(Bool.self, key, value)
        case "limit_group": limitGroup = try Self.as(String.self, key, value)
        case "hang":
            for name in try Self.as([String].self, key, value) { hang.insert(try Self.operation(name)) }
        case "fail":
            for (name, number) in try Self.as([String: Any].self, key, value) {
                fail[try Self.operation(name)] = try Self.code(name, number)
            }
        default: throw Malformed(text: "the fault \"\(key)\" does not exist")
        }
    }

    private static func number(_ key: String, _ value: Any) throws(Malformed) -> Int {
        let number = try Self.as(Int.self, key, value)
        guard number >= 0 else { throw Malformed(text: "\"\(key)\" is negative") }
        return number
    }

    private static func code(_ key: String, _ value: Any) throws(Malformed) -> VZError.Code {
        let number = try Self.as(Int.self, key, value)
        guard let code = VZError.Code(rawValue: number) else {
            throw Malformed(text: "\"\(key)\": VZError has no code \(number)")
        }
        return code
    }

    private static func operation(_ name: String) throws(Malformed) -> Operation {
        guard let operation = Operation(rawValue: name) else {
            throw Malformed(text: "\"\(name)\" does not exist")
        }
        return operation
    }

    private static func `as`<Value>(_: Value.Type, _ key: String, _ value: Any) throws(Malformed) -> Value {
        guard let value = value as? Value else { throw Malformed(text: "\"\(key)\" is not \(Value.self)") }
        return value
    }
}

extension VZError {
    /// The error of a fault.
    init(askedFor code: Code, of operation: String) {
        self.init(
            code, failure: "The virtual machine was configured to fail.",
            reason: "A fault was asked for: \(operation) ends with \(code) (\(code.rawValue)).")
    }
}
