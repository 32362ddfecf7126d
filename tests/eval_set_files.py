"""Small files of public test sets, as their authors publish them."""

import json

TRANSCRIPTS = {
    "LibriSpeech/test-clean/61/70968/61-70968.trans.txt": "61-70968-0000 HE BEGAN A\n61-70968-0001 GIVE NOT SO\n",
    "LibriSpeech/test-clean/4077/13754/4077-13754.trans.txt": "4077-13754-0000 IT'S HARDLY\n",
}
SPEAKERS = """; comment | with | bars | in | it
61   | M | test-clean       |  8.08 | |CBW|Simon
4077 | F | test-clean       |  8.23 |
"""
LEXICON = """A	AH0
A	EY1
BEGAN  B IH0 G AE1 N
HE	HH IY1
IT'S	IH1 T S
HARDLY	HH AA1 R D L IY0
NOT	N AA1 T
"""
AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
1,-abc,30,"A man talks, then ""laughs"" loudly"
2,x_2,0,Rain falls
3,-abc,30,A man speaks
"""
MUSICCAPS = """ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,\
is_balanced_subset,is_audioset_eval
-0G,30,40,"/m/0140xf,/m/02cjck","['low quality', 'drums']","Slow, sad
piano",4,False,True
zz9,0,10,/m/04rlf,['pop'],Pop,4,True,False
"""
EMOTIONS = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\r
\r
[6.2901 - 8.2357]\tSes05F_impro01_F000\texc\t[2.5000, 2.5000, 2.5000]\r
C-E2:\tExcited;\t(caf\udce9)\r
\r
[10.0100 - 11.3925]\tSes05F_impro01_M000\tfru\t[2.5000, 2.5000, 2.5000]\r
[14.8872 - 18.0175]\tSes05F_impro01_M001\tang\t[2.5000, 2.5000, 2.5000]\r
"""
WIKIQA = """QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel
Q0\tHOW "BIG" IS IT\tD0\tIt\tD0-0\tIt is "very big.\t1
Q0\tHOW "BIG" IS IT\tD0\tIt\tD0-1\tNobody knows.\t0
Q0\tHOW "BIG" IS IT\tD0\tIt\tD0-2\tBig indeed.\t1
Q5\twhere is it\tD5\tIt\tD5-0\tIt is red.\t0
"""


def slurp(*recordings: str, **changes: object) -> str:
    words = "remind me what 's on tuesday and friday with jo".split()
    entities = [{"span": [2, 3], "type": "event_name"}, {"span": [5], "type": "date"}, {"span": [7], "type": "date"}]
    request = {
        "slurp_id": 1,
        "sentence": "remind me what's on tuesday and friday with jo",
        "tokens": [{"surface": word, "id": i, "lemma": word, "pos": "NN"} for i, word in enumerate(words)],
        "entities": entities,
        "recordings": [{"file": file, "wer": 0.0, "ent_wer": None, "status": "correct"} for file in recordings],
    }
    return json.dumps(request | changes) + "\n"


def gigaspeech(path: str, *segments: tuple[str, float, float, str, str]) -> str:
    listed = [
        {"sid": sid, "begin_time": begin, "end_time": end, "text_tn": text, "subsets": [subset], "speaker": "N/A"}
        for sid, begin, end, text, subset in segments
    ]
    return json.dumps({"dataset": "GigaSpeech", "audios": [{"path": path, "aid": "YOU1", "segments": listed}]})


TALN = {"id": "7", "title": "Big nets learn.", "abstract": "", "keyphrases": ["neural nets", "big data"]}
MIDAS = {
    "paper_id": 7,
    "document": ["Big", "nets", "learn."],
    "doc_bio_tags": ["O", "O", "O"],
    "extractive_keyphrases": ["neural nets"],
    "abstractive_keyphrases": ["big data"],
}
