"""sentencepiece.json: a BPE vocabulary as Llama 1 and 2, Mistral and TinyLlama have them (byte fallback, digits one by one, a
space before the text, white space kept), trained by SentencePiece on this file's texts, and the ids that it gives each of them.

pip install sentencepiece, then: python make_sentencepiece_fixture.py
"""
import json, os, tempfile
import sentencepiece as spm

PAGE = """The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox again and again.
Pruning removes the weights of a model that matter least; what remains is smaller, and sometimes faster.
Sparse matrices hold mostly zeros, and the positions of those that are not must be stored beside them.
    def prune(weights, sparsity):
        order = sorted(range(len(weights)), key=lambda i: abs(weights[i]))
        for i in order[:int(len(order) * sparsity)]:
            weights[i] = 0.0  # the smallest go first
Der schnelle braune Fuchs springt über den faulen Hund; Straße, Größe und Übermut sind Wörter mit Umlauten.
Le renard brun rapide saute par-dessus le chien paresseux, où l'été a été très chaud à l'île d'Oléron.
El veloz murciélago hindú comía feliz cardillo y kiwi; la cigüeña tocaba el saxofón detrás del palenque de paja.
Быстрая коричневая лиса перепрыгивает через ленивую собаку, а собака спит и ничего не видит.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί, και το σκυλί κοιμάται.
敏捷的棕色狐狸跳过懒狗。剪枝去掉模型中最不重要的权重，剩下的更小，有时更快。
素早い茶色の狐がのろまな犬を飛び越える。枝刈りはモデルの重みを取り除く。
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 가지치기는 모델의 가중치를 제거한다.
الثعلب البني السريع يقفز فوق الكلب الكسول، والكلب نائم لا يرى شيئا.
השועל החום המהיר קופץ מעל הכלב העצלן, והכלב ישן ואינו רואה דבר.
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है, और कुत्ता सोता रहता है।
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ
1234567890 3.14159 2:4 50% 1e-6 2026-12-01 0x1F600
"""
MORE = ["", "a", " ", "  two  spaces  ", "\n", "tab\tand\r\nline ends\n\n", "trailing space ", "😀 👩‍💻 🏳️‍🌈", "e\u0301 é ﬁ ①", "\u200b\ufeff",
        "ꙮ 𒀀 ᚠᛇᚻ", "▁ the mark itself ▁▁", "<0x41> <unknown> </ s>", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "thethethe   the", "\x00\x01"]

with tempfile.TemporaryDirectory() as folder:
    corpus = os.path.join(folder, "corpus.txt")
    with open(corpus, "w", encoding="utf-8") as out:
        out.write(PAGE * 4)
    spm.SentencePieceTrainer.train(
        input=corpus, model_prefix=os.path.join(folder, "m"), model_type="bpe", vocab_size=900, byte_fallback=True,
        character_coverage=0.995, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    processor = spm.SentencePieceProcessor(model_file=os.path.join(folder, "m.model"))

count = processor.get_piece_size()
kind = lambda i: 2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 5 if processor.is_unused(i) else 1
# SentencePiece takes the mark for a space, so that this text does not come back as it was.
texts = [text for text in PAGE.splitlines() + [PAGE] + MORE if processor.decode(processor.encode(text)) == text]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "sentencepiece.json"), "w", encoding="utf-8") as out:
    json.dump({
        "sentencepiece": spm.__version__,
        "tokens": [processor.id_to_piece(i) for i in range(count)],
        "scores": [processor.get_score(i) for i in range(count)],
        "types": [kind(i) for i in range(count)],
        "texts": [{"text": text, "ids": processor.encode(text)} for text in texts],
    }, out, ensure_ascii=False, separators=(",", ":"))
    out.write("\n")
print(count, "tokens", len(texts), "texts of", len(PAGE.splitlines()) + 1 + len(MORE))
