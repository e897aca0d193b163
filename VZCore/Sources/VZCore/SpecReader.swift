import Foundation
import Virtualization

/// Reads the keys of one JSON object and gathers what is wrong with them, instead of stopping at the first mistake.
struct SpecReader {
    private struct Key: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    /// A key and what is wrong with it.
    struct Mistake {
        let key: String
        let words: String
    }

    private(set) var mistakes: [Mistake] = []
    private let object: KeyedDecodingContainer<Key>
    private let prefix: String

    /// An object with these keys and no others.
    init(_ decoder: any Decoder, keys: [String], prefix: String = "") throws {
        self.prefix = prefix
        object = try decoder.container(keyedBy: Key.self)
        for key in object.allKeys.map(\.stringValue).sorted() where !keys.contains(key) {
            mistakes.append(Mistake(key: prefix + key, words: "is no key of it"))
        }
    }

    /// The key's value; without one, or with null, `absent`, and if that is nil a mistake. `kind` words what it must be.
    /// The value does not matter once there is a mistake.
    mutating func read<Value: Decodable>(
        _ key: some CodingKey, _ kind: String, absent: Value?, elseUse placeholder: Value
    ) -> Value {
        let name = prefix + key.stringValue
        do {
            if let value = try object.decodeIfPresent(Value.self, forKey: Key(stringValue: key.stringValue)) {
                return value
            }
        } catch let failure as SpecMistakes {
            mistakes += failure.mistakes
            return placeholder
        } catch {
            mistakes.append(Mistake(key: name, words: "must be \(kind)"))
            return placeholder
        }
        if let absent { return absent }
        mistakes.append(Mistake(key: name, words: "is missing; it must be \(kind)"))
        return placeholder
    }

    mutating func read<Value: Decodable>(_ key: some CodingKey, _ kind: String, absent: Value) -> Value {
        read(key, kind, absent: absent, elseUse: absent)
    }

    /// One of an enumeration's words.
    mutating func choose<Choice: Decodable & CaseIterable & RawRepresentable>(
        _ key: some CodingKey, absent: Choice?, elseUse placeholder: Choice
    ) -> Choice where Choice.RawValue == String {
        let words = Choice.allCases.map(\.rawValue).joined(separator: ", ")
        return read(key, "one of \(words)", absent: absent, elseUse: placeholder)
    }

    /// Adds what else is wrong, except with keys that were not even read.
    mutating func add(_ others: [Mistake]) {
        let known = Set(mistakes.map(\.key))
        mistakes += others.filter { !known.contains($0.key) }
    }
}

/// The mistakes of an object inside another one, on their way up.
private struct SpecMistakes: Error {
    let mistakes: [SpecReader.Mistake]
}

extension MachineSpec {
    public init(from decoder: any Decoder) throws {
        var reader = try SpecReader(decoder, keys: CodingKeys.allCases.map(\.rawValue))
        let number = "a whole number, not negative"
        self.init(
            bundle: reader.read(CodingKeys.bundle, "a path", absent: nil, elseUse: ""),
            os: reader.choose(CodingKeys.os, absent: nil, elseUse: .macos),
            cpus: reader.read(CodingKeys.cpus, number, absent: nil, elseUse: 0),
            memoryBytes: reader.read(CodingKeys.memoryBytes, number, absent: nil, elseUse: 0),
            macAddress: reader.read(CodingKeys.macAddress, "a text", absent: .some(nil), elseUse: nil),
            network: reader.choose(CodingKeys.network, absent: .nat, elseUse: .nat),
            display: reader.choose(CodingKeys.display, absent: .headless, elseUse: .headless),
            diskSync: reader.choose(CodingKeys.diskSync, absent: DiskSync.none, elseUse: .none),
            consoleLog: reader.read(CodingKeys.consoleLog, "a path", absent: ""),
            linux: reader.read(CodingKeys.linux, "an object", absent: .some(nil), elseUse: nil),
            vsockListen: reader.read(CodingKeys.vsockListen, "a list of port numbers", absent: []),
            savable: reader.read(CodingKeys.savable, "true or false", absent: false))
        reader.add(mistakes)
        if !reader.mistakes.isEmpty { throw Self.failure(reader.mistakes) }
    }

    /// - Throws: `badSpec` with everything that cannot be.
    func check() throws(VZFailure) {
        if !mistakes.isEmpty { throw Self.failure(mistakes) }
    }

    private static func failure(_ mistakes: [SpecReader.Mistake]) -> VZFailure {
        let words = mistakes.map { "\($0.key) \($0.words)" }.joined(separator: "; ")
        return VZFailure(code: .badSpec, message: "the machine's settings are wrong: \(words)")
    }

    private var mistakes: [SpecReader.Mistake] {
        var mistakes: [SpecReader.Mistake] = []
        func refuse(_ key: CodingKeys, _ words: String, if wrong: Bool) {
            if wrong { mistakes.append(.init(key: key.rawValue, words: words)) }
        }
        refuse(.bundle, "must be an absolute path, not \"\(bundle)\"", if: !bundle.hasPrefix("/"))
        refuse(.cpus, "must be at least 1, not \(cpus)", if: cpus < 1)
        refuse(.memoryBytes, "must be more than 0", if: memoryBytes == 0)
        if let macAddress {
            refuse(
                .macAddress, "must be a unicast address like 52:54:00:12:34:56, not \"\(macAddress)\"",
                if: !Self.isUnicast(macAddress))
        }
        refuse(.linux, "is for os linux only", if: linux != nil && os == .macos)
        if let linux, os == .linux {
            refuse(.linux, "needs either a kernel or efi, not both", if: linux.efi == !linux.kernel.isEmpty)
        }
        let never = vsockListen.filter { $0 == 0 || $0 == .max }
        refuse(
            .vsockListen, "has no port \(never.map(String.init).joined(separator: ", "))", if: !never.isEmpty)
        refuse(.vsockListen, "names a port twice", if: Set(vsockListen).count != vsockListen.count)
        return mistakes
    }

    private static func isUnicast(_ address: String) -> Bool {
        guard VZMACAddress(string: address) != nil, let first = UInt8(address.prefix(2), radix: 16) else {
            return false
        }
        return first & 1 == 0
    }
}

extension MachineSpec.Linux {
    public init(from decoder: any Decoder) throws {
        let linux = MachineSpec.CodingKeys.linux.rawValue
        var reader = try SpecReader(decoder, keys: CodingKeys.allCases.map(\.rawValue), prefix: "\(linux).")
        self.init(
            kernel: reader.read(CodingKeys.kernel, "a path", absent: ""),
            initrd: reader.read(CodingKeys.initrd, "a path", absent: ""),
            commandLine: reader.read(CodingKeys.commandLine, "a text", absent: ""),
            efi: reader.read(CodingKeys.efi, "true or false", absent: false))
        if !reader.mistakes.isEmpty { throw SpecMistakes(mistakes: reader.mistakes) }
    }
}
