import Foundation

/// A line on standard output, at once: the test at the other end of the pipe waits for it.
func say(_ text: String) { FileHandle.standardOutput.write(Data("\(text)\n".utf8)) }
