//! As much of Python's pickle as `torch.save` uses for a dict of tensors. Nothing is executed: a global is a name, and what
//! is not known is an error.

use std::collections::HashMap;
use std::rc::Rc;

/// A value of a pickle. What is not looked at is [`Value::Other`], and that is what nests deeper than a tensor's arguments:
/// dropping a value must not recurse as deep as a file likes.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Int(i64),
    Bool(bool),
    Text(Rc<str>),
    Global(Rc<str>),
    /// A tuple without tuples.
    Tuple(Rc<[Value]>),
    /// A tuple with tuples of the first kind in it, as the arguments of a tensor are.
    Nested(Rc<[Value]>),
    /// Without tuples, dicts and lists, as is a list.
    Dict(Vec<(Value, Value)>),
    List(Vec<Value>),
    /// Storage of a tensor: type and key.
    Storage(Rc<str>, Rc<str>),
    Tensor(Rc<TensorRef>),
    Other,
}

/// A tensor: a view of a storage.
#[derive(Debug)]
pub(super) struct TensorRef {
    /// Such as `torch BoolStorage`.
    pub(super) storage: Rc<str>,
    /// Name of the storage in the file.
    pub(super) key: Rc<str>,
    /// Offset of the first element, in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) stride: Vec<usize>,
}

/// The format of `torch.save` before PyTorch 1.6 (later only on demand): pickles one after the other, then the
/// storages.
pub(super) struct Legacy {
    /// Entries of the dict.
    pub(super) entries: Vec<(Value, Value)>,
    /// Key and type of each storage, in the order of their bytes.
    pub(super) storages: Vec<(Rc<str>, Rc<str>)>,
    /// The byte at which the first storage begins.
    pub(super) data: usize,
}

/// The pickle of a number that such files begin with.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
/// The version of the layout, which has never changed.
const LEGACY_VERSION: i64 = 1001;

/// Returns whether a file begins as `torch.save` wrote it before PyTorch 1.6.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(LEGACY)
}

/// Parses a pickle that holds a dict, and gives its entries.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<(Value, Value)>, String> {
    of_dict(Machine::at(bytes, 0).run()?)
}

/// Parses what stands before the storages of a file that [`is_legacy`].
pub(super) fn legacy(bytes: &[u8]) -> Result<Legacy, String> {
    let mut at = LEGACY.len();
    let mut types = HashMap::new();
    let mut next = || {
        let mut machine = Machine::at(bytes, at);
        let value = machine.run()?;
        at = machine.at;
        types.extend(machine.types);
        Ok::<Value, String>(value)
    };
    match next()? {
        Value::Int(LEGACY_VERSION) => {}
        _ => return Err("it has another version of `torch.save`'s layout than any PyTorch wrote".into()),
    }
    let system = of_dict(next()?)?;
    let is_big = |(key, value): &(Value, Value)| matches!((key, value), (Value::Text(key), Value::Bool(false)) if &**key == "little_endian");
    if system.iter().any(is_big) {
        return Err("its numbers are big-endian".into());
    }
    let entries = of_dict(next()?)?;
    let Value::List(keys) = next()? else { return Err("it has no list of storages".into()) };
    let storage = |key: &Value| match key {
        Value::Text(key) => types.get(key).map(|kind| (key.clone(), kind.clone())),
        _ => None,
    };
    let storages = keys.iter().map(storage).collect::<Option<_>>();
    let storages = storages.ok_or("it has storages that no tensor is a view of")?;
    Ok(Legacy { entries, storages, data: at })
}

fn of_dict(value: Value) -> Result<Vec<(Value, Value)>, String> {
    match value {
        Value::Dict(entries) => Ok(entries),
        _ => Err("it holds no dict of tensors".into()),
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// The type of each storage, by its key.
    types: HashMap<Rc<str>, Rc<str>>,
}

/// PyTorch's own limit. Without one, tensors that share a long shape would take far more memory than their pickle.
const MAX_DIMS: usize = 64;

impl<'a> Machine<'a> {
    fn at(bytes: &'a [u8], at: usize) -> Self {
        Machine { bytes, at, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), types: HashMap::new() }
    }

    /// Until the pickle's end, after which `at` stands.
    fn run(&mut self) -> Result<Value, String> {
        loop {
            match self.byte()? {
                0x80 => match self.byte()? {
                    2 => {}
                    version => return Err(format!("pickle protocol {version} is not `torch.save`'s own, which is 2")),
                },
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.stack.push(Value::Dict(Vec::new())),
                b')' => self.stack.push(Value::Tuple(Rc::new([]))),
                b']' => self.stack.push(Value::List(Vec::new())),
                b'N' => self.stack.push(Value::Other),
                0x88 | 0x89 => self.stack.push(Value::Bool(self.bytes[self.at - 1] == 0x88)),
                b'K' => {
                    let int = self.byte()?;
                    self.stack.push(Value::Int(int.into()));
                }
                b'M' => {
                    let int = u16::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(int.into()));
                }
                b'J' => {
                    let int = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(int.into()));
                }
                0x8a => {
                    let length = self.byte()?.into();
                    self.long(length)?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.text(length)?;
                }
                b'c' => {
                    let global = format!("{} {}", self.line()?, self.line()?);
                    self.stack.push(Value::Global(global.into()));
                }
                b'q' => {
                    let at = self.byte()?.into();
                    self.put(at)?;
                }
                b'r' => {
                    let at = u32::from_le_bytes(self.array()?);
                    self.put(at)?;
                }
                b'h' => {
                    let at = self.byte()?.into();
                    self.get(at)?;
                }
                b'j' => {
                    let at = u32::from_le_bytes(self.array()?);
                    self.get(at)?;
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.stack.push(tuple(items));
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set(items)?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item]);
                }
                // The state of an object: state dicts carry versions of modules there.
                b'b' => drop(self.pop()?),
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                other => {
                    return Err(format!("pickle operation 0x{other:02x} is none that `torch.save` uses for tensors"));
                }
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).ok_or("its pickle is cut off")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "its pickle is cut off".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let length = self.bytes[self.at..].iter().position(|&b| b == b'\n').ok_or("its pickle is cut off")?;
        let line = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.at += 1;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a name in its pickle is no UTF-8")?.into();
        self.stack.push(Value::Text(text));
        Ok(())
    }

    /// Two's complement, little-endian, of any length.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut eight = [if negative { 0xff } else { 0 }; 8];
        if bytes.len() > 8 {
            return Err("an integer in its pickle has more than 64 bits".into());
        }
        eight[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(eight)));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        // What stands below a mark is not to be taken before the mark is.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its pickle takes more values than it gave".into());
        }
        self.stack.pop().ok_or_else(|| "its pickle takes more values than it gave".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("its pickle takes values back to a mark that it did not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, n: usize) -> Result<(), String> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.stack.push(tuple(items));
        Ok(())
    }

    fn put(&mut self, at: u32) -> Result<(), String> {
        let value = match self.stack.last() {
            // Its entries come later; nothing that is a mask fetches one.
            Some(Value::Dict(_) | Value::List(_)) => Value::Other,
            Some(value) => value.clone(),
            None => return Err("its pickle remembers a value that it did not give".into()),
        };
        self.memo.insert(at, value);
        Ok(())
    }

    fn get(&mut self, at: u32) -> Result<(), String> {
        let value = self.memo.get(&at).cloned().ok_or("its pickle fetches a value that it did not remember")?;
        self.stack.push(value);
        Ok(())
    }

    /// Adds to the list on top of the stack; what is added to anything else is not looked at.
    fn append(&mut self, items: Vec<Value>) {
        if let Some(Value::List(list)) = self.stack.last_mut() {
            list.extend(items.into_iter().map(flat));
        }
    }

    /// Puts keys and values, in turn, into the dict on top of the stack.
    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        match self.stack.last_mut() {
            Some(Value::Dict(entries)) if items.len().is_multiple_of(2) => {
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    entries.push((flat(key), flat(value)));
                }
                Ok(())
            }
            // State of an object that was not looked at.
            Some(Value::Other) => Ok(()),
            _ => Err("its pickle puts entries into a value that is no dict".into()),
        }
    }

    /// `("storage", type, key, location, elements)`, and before PyTorch 1.6 what part of another one it is, which is none.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Value::Tuple(id) = &id else { return Err("a storage in its pickle has no id".into()) };
        match &id[..] {
            [Value::Text(kind), Value::Global(dtype), Value::Text(key), _, _]
            | [Value::Text(kind), Value::Global(dtype), Value::Text(key), _, _, Value::Other]
                if &**kind == "storage" =>
            {
                self.types.insert(key.clone(), dtype.clone());
                self.stack.push(Value::Storage(dtype.clone(), key.clone()));
                Ok(())
            }
            _ => Err("a storage in its pickle has another id than `torch.save` gives".into()),
        }
    }

    /// Calls a function of those that tensors and state dicts are made with.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Global(function), Value::Tuple(arguments) | Value::Nested(arguments)) = (function, arguments)
        else {
            return Err("its pickle calls a value that is no function".into());
        };
        let made = match (&*function, &arguments[..]) {
            ("collections OrderedDict", []) => Value::Dict(Vec::new()),
            (
                "torch._utils _rebuild_tensor_v2",
                [Value::Storage(storage, key), Value::Int(offset), shape, stride, ..],
            ) => Value::Tensor(Rc::new(TensorRef {
                storage: storage.clone(),
                key: key.clone(),
                offset: index(*offset)?,
                shape: indices(shape)?,
                stride: indices(stride)?,
            })),
            ("torch._utils _rebuild_parameter", [tensor @ Value::Tensor(_), ..]) => tensor.clone(),
            _ => {
                return Err(format!(
                    "its pickle calls `{function}`, which no tensor of a mask needs; save a dict of tensors"
                ));
            }
        };
        self.stack.push(made);
        Ok(())
    }
}

/// A value of a list or dict; nothing in a tuple, dict or list there is looked at.
fn flat(value: Value) -> Value {
    match value {
        Value::Tuple(_) | Value::Nested(_) | Value::Dict(_) | Value::List(_) => Value::Other,
        value => value,
    }
}

/// The tuple of these values; nothing in a nested tuple among them is looked at.
fn tuple(mut items: Vec<Value>) -> Value {
    items.iter_mut().filter(|item| matches!(item, Value::Nested(_))).for_each(|item| *item = Value::Other);
    let is_nested = items.iter().any(|item| matches!(item, Value::Tuple(_)));
    if is_nested { Value::Nested(items.into()) } else { Value::Tuple(items.into()) }
}

fn index(int: i64) -> Result<usize, String> {
    usize::try_from(int).map_err(|_| format!("{int} in its pickle is no size"))
}

fn indices(value: &Value) -> Result<Vec<usize>, String> {
    let Value::Tuple(items) = value else { return Err("a tensor in its pickle has no shape".into()) };
    if items.len() > MAX_DIMS {
        return Err(format!("a tensor in its pickle has {} dimensions", items.len()));
    }
    let one = |item: &Value| match item {
        Value::Int(int) => index(*int),
        _ => Err("a tensor in its pickle has a shape that is no tuple of integers".into()),
    };
    items.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pickle: &[u8]) -> Result<Value, String> {
        Machine::at(pickle, 0).run()
    }

    /// Values in one another, as many as bytes: dropping them took the whole stack once.
    #[test]
    fn what_nests_deeply_is_not_looked_at() {
        const DEEP: usize = 1 << 20;
        let tuples = [b")".as_slice(), &b"\x85".repeat(DEEP), b"."].concat();
        assert!(matches!(run(&tuples), Ok(Value::Tuple(_) | Value::Nested(_))));
        let lists = [b"]".repeat(DEEP), b"a".repeat(DEEP - 1), b".".to_vec()].concat();
        assert!(matches!(run(&lists), Ok(Value::List(_))));
        let dicts = [b"}N".repeat(DEEP), b"}".to_vec(), b"s".repeat(DEEP), b".".to_vec()].concat();
        assert!(matches!(run(&dicts), Ok(Value::Dict(_))));
    }

    /// A few bytes took hundreds of megabytes once.
    #[test]
    fn a_value_is_remembered_under_any_number_at_the_price_of_one() {
        let mut machine = Machine::at(b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff.", 0);
        assert!(matches!(machine.run(), Ok(Value::Other)));
        assert_eq!(machine.memo.len(), 1);
    }

    /// Every tensor has a shape of its own, though their pickle has one for all.
    #[test]
    fn a_tensor_has_no_more_dimensions_than_pytorch_gives_it() {
        let tensor = |dims: usize| {
            let head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nBoolStorage\n";
            let (id, sizes) = (b"X\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0(", b"K\x01".repeat(dims));
            [head.as_slice(), id, &sizes, b"tq\0h\0tR."].concat()
        };
        assert!(matches!(run(&tensor(MAX_DIMS)), Ok(Value::Tensor(tensor)) if tensor.stride.len() == MAX_DIMS));
        assert_eq!(run(&tensor(MAX_DIMS + 1)).unwrap_err(), "a tensor in its pickle has 65 dimensions");
    }
}
