-- The words of the history, to be found by their beginnings. `rowid` is the position of the message, in which the text itself
-- stands. The words of one that is forgotten are taken out, not only marked.
CREATE VIRTUAL TABLE words USING fts5 (text, content = '', tokenize = 'unicode61 remove_diacritics 2');
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
